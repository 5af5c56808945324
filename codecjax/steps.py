"""The device side of generation: prefill and decode, one jit each.

Everything a step needs is an argument and everything it changes is a result. Pages, the record
of decoded units and the KV cache are donated, so they are updated in place; a new plan is new
data in the page table and never a new trace.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from codecjax.models.config import LlamaConfig
from codecjax.models.llama import Cache, Llama
from codecjax.tiles import Residency


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw tokens.

    Attributes:
      key: of the random numbers; each position draws from its own.
      temperature: float32 scalar, positive; divides the logits.
    """

    key: jax.Array
    temperature: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
    """What one step hands to the next, in place.

    Attributes:
      pages: bf16[P, rows, columns], or None without a pool.
      decoded: int32[TILES, U], see `codecjax.tiles.Residency`.
      cache: the KV cache.
    """

    pages: jax.Array | None
    decoded: jax.Array
    cache: Cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a step found out.

    Attributes:
      token: int32 scalar, the next token.
      position: int32 scalar, that token's position.
      logits: float32[V], from which it was chosen.
      tiles_decoded: int32 scalar, tiles of which the kernels decoded units.
    """

    token: jax.Array
    position: jax.Array
    logits: jax.Array
    tiles_decoded: jax.Array


def prefill(
    parameters: Any,
    held: Held,
    page_table: jax.Array,
    tokens: jax.Array,
    length: jax.Array,
    sampling: Sampling | None,
    *,
    config: LlamaConfig,
    implementation: str,
    activations: str,
) -> tuple[Held, Outcome]:
    """Reads a prompt, fills the KV cache with it and chooses the first new token.

    Args:
      parameters: the tree of `codecjax.models.parameters`.
      held: pages, decoded units and an empty KV cache; donated.
      page_table: int32[TILES], the plan.
      tokens: int32[1, S], the prompt and padding after it.
      length: int32 scalar, tokens of the prompt.
      sampling: None chooses the most likely token.
      config, implementation, activations: as in `Llama`.
    """
    llama = Llama(config, parameters, implementation, activations)
    residency: Residency | None = Residency(held.pages, page_table, held.decoded)
    hidden, cache, residency = llama.hidden(tokens, 0, held.cache, residency)
    last = jax.lax.dynamic_slice_in_dim(hidden[0], length - 1, 1)
    return _choose(llama, last, cache, residency, length, sampling)


def decode(
    parameters: Any,
    held: Held,
    page_table: jax.Array,
    token: jax.Array,
    position: jax.Array,
    sampling: Sampling | None,
    *,
    config: LlamaConfig,
    implementation: str,
    activations: str,
) -> tuple[Held, Outcome]:
    """Reads one token and chooses the next.

    Args:
      token: int32 scalar.
      position: int32 scalar, the token's.
      parameters, held, page_table, sampling, config, implementation, activations: as in
        `prefill`.
    """
    llama = Llama(config, parameters, implementation, activations)
    residency: Residency | None = Residency(held.pages, page_table, held.decoded)
    hidden, cache, residency = llama.hidden(token.reshape(1, 1), position, held.cache, residency)
    return _choose(llama, hidden[0], cache, residency, position + 1, sampling)


def _choose(
    llama: Llama,
    last: jax.Array,
    cache: Cache | None,
    residency: Residency | None,
    position: jax.Array,
    sampling: Sampling | None,
) -> tuple[Held, Outcome]:
    """Chooses the token at `position` from the residual stream [1, D] of the one before it."""
    batch_logits, residency = llama.logits(last, residency)
    assert cache is not None
    assert residency is not None
    logits = batch_logits[0]
    if sampling is None:
        token = jnp.argmax(logits).astype(jnp.int32)
    else:
        key = jax.random.fold_in(sampling.key, position)
        token = jax.random.categorical(key, logits / sampling.temperature).astype(jnp.int32)
    tiles_decoded = jnp.sum(jnp.max(residency.decoded, axis=1))
    held = Held(residency.pages, residency.decoded, cache)
    return held, Outcome(token, position, logits, tiles_decoded)


def compiled(step: Callable[..., tuple[Held, Outcome]]) -> Any:
    """`prefill` or `decode` under jit, with what it holds donated."""
    return jax.jit(
        step,
        static_argnames=("config", "implementation", "activations"),
        donate_argnames=("held",),
    )
