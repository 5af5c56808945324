"""Large arrays made a part at a time, so that few temporaries are in memory at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Few temporaries, and enough to keep a GPU busy.
WEIGHTS_AT_ONCE = 1 << 24


def tile_rows_at_once(tile_rows: int, weights_of_one: int) -> int:
    """How many of a matrix's tile rows a part should have."""
    return min(tile_rows, max(1, WEIGHTS_AT_ONCE // weights_of_one))


def in_parts(
    part: Callable[[jax.Array | int], tuple[jax.Array, ...]], count: int, at_once: int
) -> tuple[jax.Array, ...]:
    """Arrays [count, ...] whose parts a function makes, when traced as when called.

    Args:
      part: given the number of the first, what belongs to `at_once` items, [at_once, ...] each.
      count: number of items.
      at_once: at most `count`.
    """
    if at_once == count:
        return part(0)

    def put_part(number: jax.Array, whole: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # The last part may begin among the items of the one before it.
        first = jnp.minimum(number * at_once, count - at_once)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(array, piece, first, axis=0)
            for array, piece in zip(whole, part(first), strict=True)
        )

    whole = tuple(
        jnp.zeros((count, *piece.shape[1:]), piece.dtype) for piece in jax.eval_shape(part, 0)
    )
    return jax.lax.fori_loop(0, -(-count // at_once), put_part, whole)
