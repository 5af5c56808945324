"""Generation: the loop on the host around one prefill and many decode steps on the device."""

import concurrent.futures
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kernels_pallas
from codecjax import steps as device_steps
from codecjax.cache import CacheObject, Controller, Plan, pool_pages
from codecjax.errors import UserError
from codecjax.models.flat import on_arrays
from codecjax.models.llama import empty_cache, forward
from codecjax.models.model import Model, cache_objects
from codecjax.models.parameters import EMBEDDING
from codecjax.steps import Held, Sampling, copied, replaced
from codecjax.tiles import DECODE, Residency, page_bytes, units_per_tile
from kernels_pallas.implementations import MOSAIC_GPU

ACTIVATIONS = ("float32", "bfloat16")
# Few KV capacities and prompt lengths, so that most requests find their step compiled.
_CAPACITY_STEP = 64
_SHORTEST_PROMPT = 8

_PREFILL = device_steps.compiled(device_steps.prefill)
_DECODE = device_steps.compiled(device_steps.decode)
_FORWARD = jax.jit(
    on_arrays(forward),
    static_argnames=("structure", "config", "implementation", "activations"),
)
_EMPTY_CACHE = jax.jit(empty_cache, static_argnums=(0, 1, 2, 3))


@dataclasses.dataclass(frozen=True)
class GeneratedStep:
    """One step of a generation, the prefill included.

    Attributes:
      token: the new token.
      logits: float32[V] on the device, those that the step computed; None where the run does
        not keep them.
      plan: what the cache decided for the step.
      tiles_decoded: tiles decoded in the step, counted by the kernels.
      seconds: from the completion of the step before to that of this one, as the host saw
        them, so a slow consumer of the steps counts; of the first step since its dispatch.
    """

    token: int
    logits: jax.Array | None
    plan: Plan
    tiles_decoded: int
    seconds: float


class Generator:
    """A model with its page pool and cache controller; both outlive a run."""

    def __init__(
        self,
        model: Model,
        *,
        max_tokens: int,
        budget_bytes: int = 0,
        policy: str = "pinned",
        implementation: str | None = None,
        activations: str | None = None,
        objects: Sequence[CacheObject] | None = None,
        steps: int | None = None,
        pages: int | None = None,
    ) -> None:
        """Allocates the page pool; no page is in use yet.

        Args:
          model: the model.
          max_tokens: the most tokens of a run, prompt and new ones together.
          budget_bytes: for decoded tiles; 0, or at least one page.
          policy: one of `codecjax.cache.POLICIES`.
          implementation: "xla", "mosaic_gpu", or None for the fastest that can run here.
          activations: "float32", "bfloat16" (mosaic_gpu has no other), or None for bfloat16 on
            a GPU and float32 elsewhere.
          objects: what the cache holds, in the order of use; None: each projection as one
            object, see `cache_objects`.
          steps: how many steps all runs will have, which offline policies must know.
          pages: P, pages to allocate; None: as many as the budget pays for and the objects can
            fill. Generators with equally many share their compiled steps, whatever their
            budgets.

        Raises:
          UserError: a bad number, an unknown policy, implementation or activations, a budget
            above the pool, or an implementation that cannot run here.
        """
        config = model.config
        if max_tokens < 1 or max_tokens > config.context:
            raise UserError(
                f"a run of {max_tokens} tokens does not fit the model's context of "
                f"{config.context}: give 1 to {config.context}"
            )
        self._model = model
        self._parameters, self._structure = model.flat
        self._max_tokens = max_tokens
        self._implementation = kernels_pallas.resolve(implementation)
        self._activations = resolve_activations(activations, self._implementation)
        self._capacity = min(-(-max_tokens // _CAPACITY_STEP) * _CAPACITY_STEP, config.context)

        objects = cache_objects(model) if objects is None else objects
        page = page_bytes(model.tile)
        usable = min(pool_pages(budget_bytes, page), sum(len(item.tiles) for item in objects))
        pool = usable if pages is None else pages
        if pool < 0:
            raise UserError(f"a pool of {pool} pages is impossible: give 0 or more")
        if usable > pool:
            raise UserError(
                f"a cache budget of {budget_bytes} bytes needs {usable} pages and the pool has "
                f"{pool}: give at most {pool * page} bytes"
            )
        self._controller = Controller(policy, objects, usable, page, model.tile_count, steps)
        self._pages = jnp.zeros((pool, *model.tile), jnp.bfloat16) if pool else None
        self._decoded = jnp.zeros((model.tile_count, units_per_tile(model.tile)), jnp.int32)
        self._page_table = jnp.full(model.tile_count, DECODE, jnp.int32)
        # Where each step's report waits for the host, while the next step overwrites its own.
        self._report = jnp.zeros(2, jnp.int32)
        self._runs = 0

    @property
    def residency(self) -> Residency:
        """Pages, page table and decoded units after the last step that was dispatched."""
        return Residency(self._pages, self._page_table, self._decoded)

    @property
    def kv_nbytes(self) -> int:
        """Bytes of the KV cache of a run."""
        return sum(
            math.prod(array.shape) * array.dtype.itemsize
            for array in jax.tree.leaves(jax.eval_shape(self._empty_cache))
        )

    @property
    def implementations(self) -> dict[str, str]:
        """The implementation of each op that this generator runs."""
        attention = kernels_pallas.attention_implementation(
            self._implementation, self._model.config.head_dim
        )
        embedding = self._model.parameters[EMBEDDING]
        return {
            "matmul": self._implementation,
            "decode": self._implementation,
            "attention": attention,
            "lookup": kernels_pallas.lookup_implementation(embedding, self._implementation),
        }

    def compile(self, prompt_length: int) -> float:
        """Compiles the steps of greedy runs with prompts of this length, and of most others.

        Returns:
          Seconds spent; next to none where the steps were compiled before.
        """
        began = time.perf_counter()
        held = jax.eval_shape(self._begin)
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        tokens = jax.ShapeDtypeStruct((1, self._bucket(prompt_length)), jnp.int32)
        lowered = (
            _PREFILL.lower(self._parameters, held, tokens, scalar, None, **self._static),
            _DECODE.lower(self._parameters, held, None, **self._static),
        )
        # The compiler leaves Python alone, so both compile at once.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda each: each.compile(), lowered))
        return time.perf_counter() - began

    def run(
        self,
        prompt_tokens: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        forced_tokens: Sequence[int] | None = None,
        keep_logits: bool = False,
    ) -> Iterator[GeneratedStep]:
        """Generates `max_new_tokens` tokens; ends at no special token.

        The device is kept busy: a step is dispatched before the one before it is waited for.
        So the cache has made one step more than were taken from the iterator, until the last.
        A run that is left unfinished cannot go on once another has begun.

        Args:
          prompt_tokens: token ids, at least one.
          max_new_tokens: how many steps to make, at least one; the first is the prefill.
          temperature: 0 chooses the most likely token; above, tokens are drawn.
          seed: of the drawing.
          forced_tokens: take these as the new tokens, whatever the logits say.
          keep_logits: copy the logits of every step, which costs time.

        Raises:
          UserError: a bad number or token id, or more tokens than `max_tokens`.
        """
        vocab = self._model.config.vocab_size
        prompt = _check_tokens("prompt", prompt_tokens, vocab)
        if max_new_tokens < 1:
            raise UserError(f"cannot generate {max_new_tokens} tokens: give 1 or more")
        if len(prompt) + max_new_tokens > self._max_tokens:
            raise UserError(
                f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones exceed the "
                f"{self._max_tokens} that this generator has room for: give fewer"
            )
        if not (math.isfinite(temperature) and temperature >= 0):
            raise UserError(f"temperature {temperature} is not a number from 0 on: give one")
        sampling = None
        if temperature > 0:
            sampling = Sampling(jax.random.key(seed), jnp.float32(temperature))
        forced = None
        if forced_tokens is not None:
            forced = _check_tokens("forced_tokens", forced_tokens, vocab)
            if len(forced) != max_new_tokens:
                raise UserError(
                    f"there are {len(forced)} forced tokens for {max_new_tokens} steps: "
                    "give one for each"
                )
        return self._run(prompt, max_new_tokens, sampling, forced, keep_logits)

    def _run(
        self,
        prompt: np.ndarray,
        max_new_tokens: int,
        sampling: Sampling | None,
        forced: np.ndarray | None,
        keep_logits: bool,
    ) -> Iterator[GeneratedStep]:
        # Padding repeats a token of the prompt, so that it brings no values of its own.
        padded = np.pad(prompt, (0, self._bucket(len(prompt)) - len(prompt)), mode="edge")
        self._runs += 1
        number = self._runs
        held = self._begin()
        jax.block_until_ready(held)
        before = time.perf_counter()
        tokens, length = jax.device_put((padded[None], np.int32(len(prompt))))
        held, plan = self._step(_PREFILL, held, tokens, length, sampling)
        for index in range(max_new_tokens):
            if self._runs != number:
                raise UserError(
                    "this generator has begun another run, which has its pages now: "
                    "finish one run before the next, or make a second generator"
                )
            # The next step overwrites what this one leaves.
            report, done = replaced(self._report, held.report), plan
            self._report = report
            report.copy_to_host_async()
            logits = copied(held.logits) if keep_logits else None
            if index + 1 < max_new_tokens:
                if forced is not None:
                    token = replaced(held.token, jax.device_put(forced[index]))
                    held = dataclasses.replace(held, token=token)
                held, plan = self._step(_DECODE, held, sampling)
            chosen, tiles_decoded = (int(each) for each in np.asarray(report))
            token_id = chosen if forced is None else int(forced[index])
            now = time.perf_counter()
            yield GeneratedStep(token_id, logits, done, tiles_decoded, now - before)
            before = now

    def _begin(self) -> Held:
        """What the first step of a run needs: an empty KV cache, and the pages as they are."""
        return Held(
            pages=self._pages,
            page_table=self._page_table,
            decoded=self._decoded,
            cache=self._empty_cache(),
            token=jnp.zeros((), jnp.int32),
            position=jnp.zeros((), jnp.int32),
            logits=jnp.zeros(self._model.config.vocab_size),
            report=jnp.zeros(2, jnp.int32),
        )

    def _step(self, step: Any, held: Held, *inputs: Any) -> tuple[Held, Plan]:
        """Plans and dispatches one step."""
        plan = self._controller.plan()
        if plan.changed:
            table = replaced(held.page_table, jax.device_put(plan.page_table))
            held = dataclasses.replace(held, page_table=table)
        held = step(self._parameters, held, *inputs, **self._static)
        self._pages, self._page_table = held.pages, held.page_table
        self._decoded = held.decoded
        return held, plan

    @property
    def _static(self) -> dict[str, Any]:
        return {
            "structure": self._structure,
            "config": self._model.config,
            "implementation": self._implementation,
            "activations": self._activations,
        }

    @functools.cached_property
    def _empty_cache(self) -> Any:
        return functools.partial(
            _EMPTY_CACHE, self._model.config, 1, self._capacity, self._activations
        )

    def _bucket(self, prompt_length: int) -> int:
        """Tokens that a prompt of this length is padded to."""
        longest = max(prompt_length, _SHORTEST_PROMPT)
        return min(1 << (longest - 1).bit_length(), self._capacity)


def generate(
    model: Model,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int,
    budget_bytes: int = 0,
    policy: str = "pinned",
    implementation: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Generates tokens until one of `config.eos_ids`, which is not yielded.

    Args:
      model: the model.
      prompt: a text, or token ids.
      max_new_tokens: the most tokens to generate, at least one.
      budget_bytes: for decoded tiles; 0, or at least one page.
      policy: one of `codecjax.cache.POLICIES`.
      implementation: "xla", "mosaic_gpu", or None for the fastest that can run here.
      temperature: 0 chooses the most likely token; above, tokens are drawn.
      seed: of the drawing.

    Raises:
      UserError: an empty prompt, a text for a model without a tokenizer, a token id outside
        the vocabulary, more tokens than the context, or what `Generator` does not take.
    """
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise UserError("the model has no tokenizer for a text: give the prompt as token ids")
        prompt = model.tokenizer.encode(prompt).ids
    tokens = _check_tokens("prompt", prompt, model.config.vocab_size)
    context = model.config.context
    if len(tokens) + max_new_tokens > context:
        raise UserError(
            f"a prompt of {len(tokens)} tokens and max_new_tokens {max_new_tokens} exceed the "
            f"model's context of {context}: set max_new_tokens to at most "
            f"{max(0, context - len(tokens))}"
        )
    generator = Generator(
        model,
        max_tokens=len(tokens) + max_new_tokens,
        budget_bytes=budget_bytes,
        policy=policy,
        implementation=implementation,
        steps=max_new_tokens,
    )
    run = generator.run(tokens.tolist(), max_new_tokens, temperature, seed)
    return _until(run, frozenset(model.config.eos_ids))


def _until(run: Iterator[GeneratedStep], ends: frozenset[int]) -> Iterator[int]:
    for step in run:
        if step.token in ends:
            return
        yield step.token


def logits(
    model: Model,
    tokens: jax.Array | np.ndarray | Sequence[Sequence[int]],
    *,
    implementation: str | None = None,
    activations: str | None = None,
) -> jax.Array:
    """Logits at every position of whole sequences, computed in one pass without any cache.

    Args:
      model: the model.
      tokens: [B, S] token ids.
      implementation, activations: as in `Generator`.

    Returns:
      float32[B, S, V].

    Raises:
      UserError: tokens of another shape or outside the vocabulary, a sequence longer than the
        context, or an implementation that cannot run here.
    """
    implementation = kernels_pallas.resolve(implementation)
    activations = resolve_activations(activations, implementation)
    ids = _check_tokens("tokens", tokens, model.config.vocab_size, dimensions=2)
    if ids.shape[1] > model.config.context:
        raise UserError(
            f"a sequence of {ids.shape[1]} tokens exceeds the model's context of "
            f"{model.config.context}: shorten it"
        )
    arrays, structure = model.flat
    return _FORWARD(
        arrays,
        ids,
        structure=structure,
        config=model.config,
        implementation=implementation,
        activations=activations,
    )


def resolve_activations(activations: str | None, implementation: str) -> str:
    """The dtype of activations: the one asked for, or for None the device's.

    Raises:
      UserError: an unknown dtype, or one that the implementation does not multiply.
    """
    if activations is None:
        return "bfloat16" if jax.devices()[0].platform == "gpu" else "float32"
    if activations not in ACTIVATIONS:
        raise UserError(
            f"unknown activations {activations!r}: choose one of {', '.join(ACTIVATIONS)}"
        )
    if implementation == MOSAIC_GPU and activations != "bfloat16":
        raise UserError(
            f"implementation {MOSAIC_GPU!r} multiplies bfloat16 only: "
            "ask for bfloat16 activations or implementation 'xla'"
        )
    return activations


def _check_tokens(what: str, tokens: Any, vocab_size: int, dimensions: int = 1) -> np.ndarray:
    """Token ids as int32, after checks."""
    try:
        ids = np.asarray(tokens)
    except ValueError as error:
        raise UserError(f"{what} has rows of different lengths: give rows of equal length") from (
            error
        )
    if ids.size == 0:
        raise UserError(f"{what} has no tokens: give at least one")
    if ids.ndim != dimensions:
        axes = "[B, S]" if dimensions == 2 else "a list"
        raise UserError(f"{what} has {ids.ndim} dimensions: give token ids as {axes}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"{what} has dtype {ids.dtype}: give whole numbers, token ids")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise UserError(
            f"{what} has token id {outside[0]} and the vocabulary has {vocab_size} tokens: "
            f"give ids from 0 to {vocab_size - 1}"
        )
    return ids.astype(np.int32)
