"""Finds the fastest settings of each kernel for a shape and batch, and keeps them in a file."""

import concurrent.futures
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from codecjax.tiles import TiledMatrix
from experiments import environment, formats
from experiments.bench_matrices import EMBEDDED, alone, applications, make_weights
from experiments.bench_settings import Settings, repeats
from experiments.cli import one_sentence
from experiments.records import write_json
from experiments.timing import Repeated, Timing
from kernels_pallas import decode_mosaic_gpu, matmul_mosaic_gpu, tuning
from kernels_pallas.arg_specs import BY_NAME, JOINT, LLAMA_8B, TINYLLAMA, activations
from kernels_pallas.inputs import Input, Normed

DEFAULT = {
    tuning.MATMUL: tuple(spec.name for spec in (*LLAMA_8B, *TINYLLAMA, *JOINT)),
    tuning.DECODE: tuple(spec.name for spec in (*LLAMA_8B, *TINYLLAMA)),
}
# One of each bucket, and of the first the one that generation has.
BATCHES = (1, *tuning.BATCHES[1:])

# A candidate may ask for more shared memory than there is.
_REFUSALS = (jax.errors.JaxRuntimeError, ValueError, NotImplementedError)


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels to tune.

    Attributes:
      matmul_candidates: (units down, units across, batch) -> configs to try.
      matmul: (x, matrix, config) -> product.
      decode_candidates: (units down, units across) -> configs to try.
      decode: (matrix, config) -> dense matrix.
    """

    matmul_candidates: Callable[[int, int, int], Sequence[Any]]
    matmul: Callable[[Input, TiledMatrix, Any], jax.Array]
    decode_candidates: Callable[[int, int], Sequence[Any]]
    decode: Callable[[TiledMatrix, Any], jax.Array]


def mosaic_gpu() -> Kernels:
    """The kernels of this package."""

    def matmul(x: Input, t: TiledMatrix, config: Any) -> jax.Array:
        (y,), _ = matmul_mosaic_gpu.matmul(x, (t,), None, jnp.int32(0), config=config)
        return y

    def decode(t: TiledMatrix, config: Any) -> jax.Array:
        return decode_mosaic_gpu.decode(t, None, jnp.int32(0), config=config)[0]

    return Kernels(matmul_mosaic_gpu.candidates, matmul, decode_mosaic_gpu.candidates, decode)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One candidate that was tried.

    Attributes:
      op, spec, batch, shape: what it was tried on; the shape in units, as the files name it.
      config: the candidate.
      timing: None where the device refused it.
      refusal: why, or empty.
      fastest: of all candidates for the same.
    """

    op: str
    spec: str
    batch: int | None
    shape: str
    config: Any
    timing: Timing | None
    refusal: str = ""
    fastest: bool = False


def tune(
    ops: Sequence[str], settings: Settings, kernels: Kernels, output: Path, device_kind: str
) -> list[Trial]:
    """Tries all candidates, shape by shape, and keeps the fastest in `output` as it goes.

    Args:
      ops: "matmul", "decode" or both.
      settings: shapes and batches; empty for all of them.
      kernels: what is tuned.
      output: the file; what it has for other shapes and batches stays.
      device_kind: of the device that runs.
    """
    trials: list[Trial] = []
    for op in ops:
        for name in settings.chosen(DEFAULT[op], (*BY_NAME, EMBEDDED)):
            tried = list(_tried(op, name, settings.batches or BATCHES, kernels))
            trials += tried
            _keep([trial for trial in tried if trial.fastest], output, device_kind)
            settings.say(f"{op} {name}: tried {len(tried)} candidates")
    return trials


def _tried(op: str, name: str, batches: Sequence[int], kernels: Kernels) -> Iterator[Trial]:
    """Trials of one shape, all of which compile at once."""
    tiled = make_weights(name).window()
    t = tiled[0]
    shape, (out, k) = tuning.shape_key(*t.unit_grid), t.shape

    def matmul(config: Any) -> Callable[[Any, Any], Any]:
        return lambda each, x: (kernels.matmul(x, each, config), x)

    def decode(config: Any) -> Callable[[Any, Any], Any]:
        return alone(lambda each: kernels.decode(each, config))

    with concurrent.futures.ThreadPoolExecutor() as compiler:
        groups: list[list[tuple[Trial, Callable[[], Repeated]]]] = []
        for batch in batches if op == tuning.MATMUL else (None,):
            if batch is None:
                candidates, make, x = kernels.decode_candidates(*t.unit_grid), decode, None
                count = applications(len(tiled), t.nbytes + 2 * out * k)
            else:
                if tuning.bucket_of(batch) is None:
                    continue
                candidates, make = kernels.matmul_candidates(*t.unit_grid, batch), matmul
                x = _as_a_model_gives_it(name, activations(batch, k, seed=batch))
                count = applications(len(tiled), t.nbytes, 2.0 * batch * out * k)
            groups.append(
                [
                    (
                        Trial(op, name, batch, shape, config, None),
                        _started(make(config), tiled, count, compiler, x),
                    )
                    for config in candidates
                ]
            )
    for group in groups:
        yield from _timed(group)


def _as_a_model_gives_it(name: str, x: jax.Array) -> Input:
    """x, or what a model's matrices of that shape multiply instead."""
    if name not in {spec.name for spec in JOINT}:
        return x
    return Normed(x.astype(jnp.float32), jnp.ones(x.shape[1], x.dtype), 1e-5, str(x.dtype))


def _started(
    function: Callable[[Any, Any], Any],
    tiled: Sequence[TiledMatrix],
    count: int,
    compiler: concurrent.futures.Executor,
    x: Input | None,
) -> Callable[[], Repeated]:
    """Starts to compile; what comes back gives the call, or raises what went wrong."""
    carried = jax.tree.map(jnp.copy, x)
    try:
        call = Repeated(function, tiled, count, compiler, carried)
    except _REFUSALS as error:
        # Tracing may refuse too; like a refusal to compile it is found when the call is needed.
        refused: concurrent.futures.Future[Repeated] = concurrent.futures.Future()
        refused.set_exception(error)
        return refused.result
    return lambda: call


def _timed(group: Sequence[tuple[Trial, Callable[[], Repeated]]]) -> list[Trial]:
    """The trials of one shape and batch, timed, the fastest of them marked."""
    trials = []
    for trial, call in group:
        try:
            trials.append(dataclasses.replace(trial, timing=call().time(repeats())))
        except _REFUSALS as error:
            trials.append(dataclasses.replace(trial, refusal=one_sentence(error)))
    timed = [trial for trial in trials if trial.timing is not None]
    if not timed:
        return trials
    best = min(timed, key=lambda trial: trial.timing.seconds if trial.timing else 0.0)
    return [dataclasses.replace(trial, fastest=trial is best) for trial in trials]


def _keep(fastest: Sequence[Trial], output: Path, device_kind: str) -> None:
    """Adds settings to a tuning file."""
    content = json.loads(output.read_text()) if output.is_file() else {}
    content |= {"device": device_kind, "command": environment.command_line()}
    content["git"] = environment.git_state(Path(__file__).resolve().parent.parent)
    for trial in fastest:
        section = content.setdefault(trial.op, {})
        fields = dataclasses.asdict(trial.config)
        if trial.batch is None:
            section[trial.shape] = fields
        else:
            section.setdefault(trial.shape, {})[str(tuning.bucket_of(trial.batch))] = fields
    tuning.check(content, output)
    write_json(output, content)


def table(trials: Sequence[Trial]) -> Table:
    """The candidates, those of one shape and batch from the fastest on."""
    result = Table(title="Candidates", title_justify="left")
    for heading in ("op", "shape", "units", "batch", "settings", "time", "spread", "kept"):
        result.add_column(heading, justify="right" if heading in ("time", "spread") else "left")

    def order(trial: Trial) -> tuple[Any, ...]:
        seconds = float("inf") if trial.timing is None else trial.timing.seconds
        return trial.op, trial.spec, trial.batch or 0, seconds

    for trial in sorted(trials, key=order):
        timing = trial.timing
        fields = dataclasses.asdict(trial.config)
        result.add_row(
            trial.op,
            trial.spec,
            trial.shape,
            formats.MISSING if trial.batch is None else str(trial.batch),
            ", ".join(f"{name} {value}" for name, value in fields.items()),
            trial.refusal if timing is None else formats.seconds(timing.seconds),
            formats.MISSING if timing is None else formats.percent(timing.spread),
            "kept" if trial.fastest else "",
        )
    return result
