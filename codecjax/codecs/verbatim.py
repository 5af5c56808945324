"""Tiles that are stored as they are, beside compressed ones: what a matrix's `slot` says.

Where a matrix has such tiles, V > 0 of T:

    slot      int32[T]    s >= 0: compressed tile s; s < 0: verbatim tile -(s + 1)
    verbatim  bf16[V, rows, columns]      edges padded with zeros

Elsewhere it has neither array, and tile t is compressed tile t.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs.window_pool import place_of, verbatim_tiles
from codecjax.tiles import TiledMatrix


def with_verbatim(
    by_tile: Mapping[str, jax.Array],
    w: jax.Array,
    compressed: np.ndarray,
    tile: tuple[int, int],
) -> dict[str, jax.Array]:
    """The arrays of compressed tiles, and `slot` and `verbatim` where others exist.

    Args:
      by_tile: arrays [T, ...] by name, of all tiles.
      w: bf16[OUT, K].
      compressed: bool[T], False for tiles to store verbatim.
      tile: (rows, columns).
    """
    if compressed.all():
        return dict(by_tile)
    keep, spill = np.flatnonzero(compressed), np.flatnonzero(~compressed)
    slot = np.where(compressed, np.cumsum(compressed) - 1, -np.cumsum(~compressed))
    return {
        **{name: array[keep] for name, array in by_tile.items()},
        "slot": jnp.asarray(slot, jnp.int32),
        "verbatim": _cut(w, jnp.asarray(spill), tile),
    }


@functools.partial(jax.jit, static_argnames=("tile",))
def _cut(w: jax.Array, indices: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """bf16[V, rows, columns]: the tiles numbered by int32[V], edges padded with zeros."""
    rows, columns = tile
    padded = jnp.pad(w, ((0, -w.shape[0] % rows), (0, -w.shape[1] % columns)))
    across = padded.shape[1] // columns

    def cut(index: jax.Array) -> jax.Array:
        start = (index // across * rows, index % across * columns)
        return jax.lax.dynamic_slice(padded, start, tile)

    return jax.lax.map(cut, indices)


def decode_or_read(
    t: TiledMatrix, index: jax.Array, decode_slot: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """bf16[rows, columns] of tile `index` (int32 scalar): decoded, or read where verbatim."""
    place = place_of(t)
    if not verbatim_tiles(t):
        return decode_slot(place.first_slot + index)
    slot = t.arrays["slot"][place.first_tile + index]
    return jax.lax.cond(
        slot >= 0, lambda: decode_slot(slot), lambda: t.arrays["verbatim"][-(slot + 1)]
    )


def needs_decode(t: TiledMatrix) -> jax.Array:
    """bool[T]: False for verbatim tiles, and for all tiles of a dense matrix."""
    if t.is_dense or not verbatim_tiles(t):
        return jnp.full(t.tiles, not t.is_dense)
    first = place_of(t).first_tile
    return jax.lax.dynamic_slice(t.arrays["slot"], (first,), (t.tiles,)) >= 0
