"""The device side of generation: prefill and decode, one jit each.

Everything a step needs is an argument and everything it changes is a result. What one step
hands to the next is donated, so it is updated in place; a new plan is new data in the page
table and never a new trace.

All of it stays at its address, and a step has no other results. That is worth milliseconds a
step on a GPU, where XLA records the step's hundreds of kernels once and replays them: where a
buffer has moved, kernels are recorded anew. So new data from the host (plan, forced token) is
copied into what is held (`replaced`), and what the host wants to know is copied out of it, to
where the last such copy was: a new buffer could take the place of the step's scratch memory.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from codecjax.models.config import LlamaConfig
from codecjax.models.flat import on_arrays
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
      page_table: int32[TILES], the step's plan.
      decoded: int32[TILES, U], see `codecjax.tiles.Residency`.
      cache: the KV cache.
      token: int32 scalar, the token that the step chose.
      position: int32 scalar, that token's position.
      logits: float32[V], from which it was chosen.
      report: int32[2] for the host: the token, and the number of tiles of which the step's
        kernels decoded units.
    """

    pages: jax.Array | None
    page_table: jax.Array
    decoded: jax.Array
    cache: Cache
    token: jax.Array
    position: jax.Array
    logits: jax.Array
    report: jax.Array


def prefill(
    parameters: Any,
    held: Held,
    tokens: jax.Array,
    length: jax.Array,
    sampling: Sampling | None,
    *,
    config: LlamaConfig,
    implementation: str,
    activations: str,
) -> Held:
    """Reads a prompt, fills the KV cache with it and chooses the first new token.

    Args:
      parameters: the tree of `codecjax.models.parameters`.
      held: pages, an empty KV cache and what else steps hand on; donated.
      tokens: int32[1, S], the prompt and padding after it.
      length: int32 scalar, tokens of the prompt.
      sampling: None chooses the most likely token.
      config, implementation, activations: as in `Llama`.
    """
    llama = Llama(config, parameters, implementation, activations)
    hidden, cache, residency = llama.hidden(tokens, 0, held.cache, _residency(held))
    last = jax.lax.dynamic_slice_in_dim(hidden[0], length - 1, 1)
    return _choose(llama, last, cache, residency, length - 1, sampling)


def decode(
    parameters: Any,
    held: Held,
    sampling: Sampling | None,
    *,
    config: LlamaConfig,
    implementation: str,
    activations: str,
) -> Held:
    """Reads the token that the step before chose and chooses the next.

    Args:
      parameters, held, sampling, config, implementation, activations: as in `prefill`.
    """
    llama = Llama(config, parameters, implementation, activations)
    hidden, cache, residency = llama.hidden(
        held.token.reshape(1, 1), held.position, held.cache, _residency(held)
    )
    return _choose(llama, hidden[0], cache, residency, held.position, sampling)


def _residency(held: Held) -> Residency | None:
    return Residency(held.pages, held.page_table, held.decoded)


def _choose(
    llama: Llama,
    last: jax.Array,
    cache: Cache | None,
    residency: Residency | None,
    before: jax.Array,
    sampling: Sampling | None,
) -> Held:
    """Chooses the token after position `before`, from the residual stream [1, D] there."""
    batch_logits, residency = llama.logits(last, residency)
    assert cache is not None
    assert residency is not None
    logits = batch_logits[0]
    if sampling is None:
        token = jnp.argmax(logits).astype(jnp.int32)
    else:
        key = jax.random.fold_in(sampling.key, before + 1)
        token = jax.random.categorical(key, logits / sampling.temperature).astype(jnp.int32)
    # Once there is a token: added before, in place, the position would have to be copied first.
    position = jnp.where(token >= 0, before + 1, before)
    tiles_decoded = jnp.sum(jnp.max(residency.decoded, axis=1))
    return Held(
        pages=residency.pages,
        page_table=residency.page_table,
        decoded=residency.decoded,
        cache=cache,
        token=token,
        position=position,
        logits=logits,
        report=jnp.stack([token, tiles_decoded]),
    )


def compiled(step: Callable[..., Held]) -> Any:
    """`prefill` or `decode` under jit, on the arrays of the parameters; `held` is donated."""
    return jax.jit(
        on_arrays(step),
        static_argnames=("structure", "config", "implementation", "activations"),
        donate_argnums=1,
        # An unused input would be dropped, and the output that replaces it put elsewhere.
        keep_unused=True,
    )


@functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
def replaced(old: jax.Array, new: jax.Array) -> jax.Array:
    """The values of `new` at the address of `old`, which is donated."""
    del old
    return jnp.copy(new)


@jax.jit
def copied(array: jax.Array) -> jax.Array:
    """The array at an address of its own."""
    return jnp.copy(array)
