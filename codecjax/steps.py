"""The device side of generation: prefill and decode, one jit each.

Everything a step needs is an argument and everything it changes is a result. What one step
hands to the next is donated, so it is updated in place; a new plan is new data in the page
table and never a new trace.

All of it stays at its address. That is worth milliseconds a step on a GPU, where XLA records
the step's hundreds of kernels once and replays them: a buffer that has moved would have all
kernels that use it recorded anew. So new data from the host (plan, forced token) is taken over
into what is held, and only a report of two numbers is a fresh array.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from codecjax.models.config import LlamaConfig
from codecjax.models.llama import Cache, Llama
from codecjax.tiles import Residency

# As a forced token: none.
FREE = -1


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
      page_table: int32[TILES], the plan of the step that was made last.
      decoded: int32[TILES, U], see `codecjax.tiles.Residency`.
      cache: the KV cache.
      token: int32 scalar, the token that the step chose.
      position: int32 scalar, that token's position.
      logits: float32[V], from which it was chosen.
    """

    pages: jax.Array | None
    page_table: jax.Array
    decoded: jax.Array
    cache: Cache
    token: jax.Array
    position: jax.Array
    logits: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NewPlan:
    """The plan of a step, where it differs from the one before.

    Attributes:
      page_table: int32[TILES].
      changed: bool scalar; where False, the held page table stays.
    """

    page_table: jax.Array
    changed: jax.Array


def prefill(
    parameters: Any,
    held: Held,
    plan: NewPlan,
    tokens: jax.Array,
    length: jax.Array,
    sampling: Sampling | None,
    *,
    config: LlamaConfig,
    implementation: str,
    activations: str,
) -> tuple[Held, jax.Array]:
    """Reads a prompt, fills the KV cache with it and chooses the first new token.

    Args:
      parameters: the tree of `codecjax.models.parameters`.
      held: pages, an empty KV cache and what else steps hand on; donated.
      plan: what the cache decided.
      tokens: int32[1, S], the prompt and padding after it.
      length: int32 scalar, tokens of the prompt.
      sampling: None chooses the most likely token.
      config, implementation, activations: as in `Llama`.

    Returns:
      What the next step needs, and a report int32[2] for the host: the token, and the number
      of tiles of which the kernels decoded units.
    """
    llama = Llama(config, parameters, implementation, activations)
    hidden, cache, residency = llama.hidden(tokens, 0, held.cache, _residency(held, plan))
    last = jax.lax.dynamic_slice_in_dim(hidden[0], length - 1, 1)
    return _choose(llama, last, cache, residency, length, sampling)


def decode(
    parameters: Any,
    held: Held,
    plan: NewPlan,
    forced: jax.Array,
    sampling: Sampling | None,
    *,
    config: LlamaConfig,
    implementation: str,
    activations: str,
) -> tuple[Held, jax.Array]:
    """Reads one token and chooses the next.

    Args:
      forced: int32 scalar, the token to read; FREE for the one that the last step chose.
      parameters, held, plan, sampling, config, implementation, activations: as in `prefill`.

    Returns:
      As `prefill`.
    """
    llama = Llama(config, parameters, implementation, activations)
    token = jnp.where(forced == FREE, held.token, forced).reshape(1, 1)
    hidden, cache, residency = llama.hidden(
        token, held.position, held.cache, _residency(held, plan)
    )
    return _choose(llama, hidden[0], cache, residency, held.position + 1, sampling)


def _residency(held: Held, plan: NewPlan) -> Residency | None:
    page_table = jnp.where(plan.changed, plan.page_table, held.page_table)
    return Residency(held.pages, page_table, held.decoded)


def _choose(
    llama: Llama,
    last: jax.Array,
    cache: Cache | None,
    residency: Residency | None,
    position: jax.Array,
    sampling: Sampling | None,
) -> tuple[Held, jax.Array]:
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
    held = Held(
        residency.pages, residency.page_table, residency.decoded, cache, token, position, logits
    )
    return held, jnp.stack([token, tiles_decoded])


def compiled(step: Callable[..., tuple[Held, jax.Array]]) -> Any:
    """`prefill` or `decode` under jit, with what it holds donated."""
    return jax.jit(
        step,
        static_argnames=("config", "implementation", "activations"),
        donate_argnames=("held",),
    )
