"""Suite `step`: one decode step of a whole model, compressed and in bf16.

On a GPU the profiler times a step, from its first kernel to the end of its last: a host may take
longer to dispatch the kernels of a small model than they run. Elsewhere steps are dispatched back
to back, each taking over what the one before holds, and the host waits for the last only: the
slope between two numbers of steps is the time of one.
"""

import concurrent.futures
import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codecjax import steps
from codecjax.codecs.window import NARROWEST
from codecjax.generate import resolve_activations
from codecjax.models.config import LlamaConfig, RopeScaling
from codecjax.models.llama import Cache, empty_cache
from codecjax.models.model import Model
from codecjax.models.random_weights import random_model
from codecjax.steps import Held
from codecjax.tiles import DECODE, DEFAULT_TILE, units_per_tile
from experiments.bench_matrices import WIDTH
from experiments.bench_rows import Row
from experiments.bench_settings import Settings, backend, repeats
from experiments.shapes import SHAPES
from experiments.timing import host_share, profiled, slope
from experiments.traffic import weight_traffic
from kernels_pallas.attention import attention_implementation
from kernels_pallas.implementations import XLA

SUITE = "step"
CONTEXT = 512
MODELS: dict[str, LlamaConfig] = {
    "tinyllama": SHAPES["tinyllama"],
    "llama_8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        context=131072,
        rope_theta=500000.0,
        rope_scaling=RopeScaling("llama3", 8.0),
        rms_eps=1e-5,
    ),
    "tiny": SHAPES["tiny"],
}
DEFAULT = ("tinyllama", "llama_8b")
KNOWN = tuple(MODELS)

# Steps that are dispatched without waiting in between, by backend.
_STEPS = {"gpu": (4, 24), "cpu": (1, 3)}
# Two ways to round bf16 activations, carried through all layers of a model.
_MOST_ERROR = 0.05

# Where some matrices have width 8: 0.72 of the bytes of bf16. Those of the tiny model are too small
# to be compressed.
_MOST_BITS = {"tinyllama": 0.72 * 16, "llama_8b": 0.72 * 16, "tiny": 16.0}


def _compressed(name: str) -> tuple[tuple[str, dict[str, float]], ...]:
    """Codecs and options: width 11 is decoded fastest, 8 takes the fewest bytes."""
    return (
        ("window", {"width": WIDTH}),
        ("window", {"width": NARROWEST}),
        ("window", {"width": WIDTH, "most_bits": _MOST_BITS[name]}),
        ("rans", {}),
    )


_DECODE = steps.compiled(steps.decode)


class Stepper:
    """A model at the end of its context, and the compiled step that goes on from there."""

    def __init__(
        self,
        model: Model,
        context: int,
        implementation: str,
        compiler: concurrent.futures.Executor,
    ) -> None:
        """Traces the step and lets `compiler` compile it."""
        self.model, self.context, self.implementation = model, context, implementation
        self._arrays, structure = model.flat
        activations = resolve_activations(None, implementation)
        self._held = _held(model, context, activations)
        self.kv_bytes = sum(array.nbytes for array in jax.tree.leaves(self._held.cache))
        lowered = _DECODE.lower(
            self._arrays,
            self._held,
            None,
            structure=structure,
            config=model.config,
            implementation=implementation,
            activations=activations,
        )
        self._executable = compiler.submit(lowered.compile)

    def __call__(self, count: int) -> jax.Array:
        """Makes so many steps, up to the end of the context; the logits[V] of the last."""
        self.go_back(count)
        for _ in range(count):
            self.step()
        return self._held.logits

    def go_back(self, count: int) -> None:
        """To so many steps before the end of the context."""
        position = jax.device_put(np.int32(self.context - 1 - count))
        position = steps.replaced(self._held.position, position)
        self._held = dataclasses.replace(self._held, position=position)

    def step(self) -> jax.Array:
        """Makes one step more; its logits[V]."""
        self._held = self._executable.result()(self._arrays, self._held, None)
        return self._held.logits

    def first_logits(self) -> np.ndarray:
        """float32[V]: of one step from the state that all steppers begin with."""
        return np.asarray(self(1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _drawn(shape: tuple[int, ...], dtype: Any, key: jax.Array) -> jax.Array:
    return jax.random.normal(key, shape, dtype)


def _past(config: LlamaConfig, context: int, activations: str) -> Cache:
    """Keys and values of a context that never was, standard normal."""
    leaves, tree = jax.tree.flatten(empty_cache(config, 1, context, activations))
    # One by one: XLA takes minutes to compile all of a model's draws together.
    drawn = [
        _drawn(leaf.shape, leaf.dtype, jax.random.key(index)) for index, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, drawn)


def _held(model: Model, context: int, activations: str) -> Held:
    return Held(
        pages=None,
        page_table=jnp.full(model.tile_count, DECODE, jnp.int32),
        decoded=jnp.zeros((model.tile_count, units_per_tile(model.tile)), jnp.int32),
        cache=_past(model.config, context, activations),
        token=jnp.zeros((), jnp.int32),
        position=jnp.zeros((), jnp.int32),
        logits=jnp.zeros(model.config.vocab_size),
        report=jnp.zeros(2, jnp.int32),
    )


def measure(settings: Settings) -> Iterator[list[Row]]:
    """Rows model by model: bf16 by XLA and by our kernels, then the codecs by our kernels."""
    for name in settings.chosen(DEFAULT, KNOWN):
        yield from _rows(name, settings)


def implementations(implementation: str) -> dict[str, str]:
    """What attends and looks rows up in the steps of that implementation; dense rows XLA does."""
    attend = {attention_implementation(implementation, each.head_dim) for each in MODELS.values()}
    return {
        "attention": ", ".join(sorted(attend)),
        "lookup": ", ".join(sorted({implementation, XLA})),
    }


def _rows(name: str, settings: Settings) -> Iterator[list[Row]]:
    """The rows of one shape. Each model makes room for the next: a GPU does not hold them all."""
    config, ours = MODELS[name], settings.implementation
    context = min(CONTEXT, config.context)
    with concurrent.futures.ThreadPoolExecutor() as compiler:
        bf16 = random_model(config, 0, "bf16", DEFAULT_TILE, {})
        plain = {XLA: Stepper(bf16, context, XLA, compiler)}
        if ours != XLA:
            plain[ours] = Stepper(bf16, context, ours, compiler)
        settings.say(f"{name}: bf16 is traced")
        logits = {implementation: each.first_logits() for implementation, each in plain.items()}
        reference, same_kernels = logits[XLA], logits[ours]
        baselines: dict[str, float] = {}
        rows = []
        for implementation, stepper in plain.items():
            error = _relative_error(logits[implementation], reference)
            exact = None if implementation == XLA else error < _MOST_ERROR
            row = _row(name, stepper, settings, exact, error, {})
            baselines[f"bf16, {implementation}"] = row.timing.seconds
            rows.append(row)
        yield [dataclasses.replace(row, baselines=baselines) for row in rows]
        del bf16, plain, stepper
        for codec, options in _compressed(name):
            gc.collect()
            model = random_model(config, 0, codec, DEFAULT_TILE, options)
            stepper = Stepper(model, context, ours, compiler)
            width = _width(options)
            settings.say(f"{name}: {codec}{f' {width}' if width else ''} is traced")
            found = stepper.first_logits()
            error = _relative_error(found, reference)
            exact = np.array_equal(found.view(np.uint32), same_kernels.view(np.uint32))
            yield [_row(name, stepper, settings, exact, error, baselines)]
            del model, stepper


def _width(options: Mapping[str, Any]) -> int | str | None:
    """Of a model's matrices."""
    width: int | None = options.get("width")
    return f"{NARROWEST} and {width}" if options.get("most_bits") else width


def _relative_error(found: np.ndarray, reference: np.ndarray) -> float:
    wide = reference.astype(np.float64)
    return float(np.linalg.norm(found - wide) / np.linalg.norm(wide))


def _row(
    name: str,
    stepper: Stepper,
    settings: Settings,
    exact: bool | None,
    error: float,
    baselines: dict[str, float],
) -> Row:
    model, config = stepper.model, stepper.model.config
    calls: dict[int, Callable[[], Any]] = {
        count: functools.partial(stepper, count) for count in _STEPS[backend()]
    }
    share = host_share(calls[max(calls)])
    stepper.go_back(1 + repeats())
    # All by one method: tracing takes 2 % of a small model's step, and a slope's host its share.
    timing = profiled(stepper.step, repeats()) or slope(calls, repeats())
    every_tile = np.full(model.tile_count, DECODE)
    return Row(
        suite=SUITE,
        op=SUITE,
        spec=name,
        codec=model.codec,
        width=_width(model.options),
        shape=(config.vocab_size, config.hidden_size),
        batch=1,
        implementation=stepper.implementation,
        timing=timing,
        host_share=share,
        bytes=model.nbytes,
        bf16_bytes=model.bf16_nbytes,
        moved_bytes=int(weight_traffic(model).step_bytes(every_tile)) + stepper.kv_bytes,
        baselines=baselines,
        exact=exact,
        relative_error=error,
        layers=config.layers,
        context=stepper.context,
        kv_bytes=stepper.kv_bytes,
    )
