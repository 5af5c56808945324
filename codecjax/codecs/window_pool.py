"""`window` matrices that share their arrays: a step then has a few arrays a layer to hand over.

A pool's `words`, `base`, `slot` and `verbatim` are those of its matrices, one after another, and
slots count from the pool's beginning. `escapes` is flat, uint32[entries]: lists of one matrix
have one capacity, those of another matrix may have another.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from codecjax.tiles import Place, TiledMatrix


def place_of(t: TiledMatrix) -> Place:
    """Where the matrix is in its arrays: at their beginning, unless it shares them."""
    if t.place is not None:
        return t.place
    return Place(
        first_tile=0,
        first_row=0,
        first_slot=0,
        first_entry=0,
        first_verbatim=0,
        slots=t.arrays["words"].shape[0],
        capacity=t.arrays["escapes"].shape[-1],
    )


def pooled(matrices: Sequence[TiledMatrix]) -> tuple[TiledMatrix, ...]:
    """The same matrices in arrays that they share.

    Args:
      matrices: not dense, each in arrays of its own, of one tile and width.
    """
    places: list[Place] = []
    tile = row = slot = entry = verbatim = 0
    slots: list[jax.Array] = []
    for t in matrices:
        own = place_of(t)
        places.append(Place(tile, row, slot, entry, verbatim, own.slots, own.capacity))
        count = jnp.arange(t.tiles, dtype=jnp.int32)
        mine = t.arrays.get("slot", count)
        slots.append(jnp.where(mine >= 0, mine + slot, mine - verbatim))
        tile, row, slot = tile + t.tiles, row + t.grid[0], slot + own.slots
        entry, verbatim = entry + t.arrays["escapes"].size, verbatim + t.tiles - own.slots
    arrays = {
        name: jnp.concatenate([t.arrays[name] for t in matrices]) for name in ("words", "base")
    }
    arrays["escapes"] = jnp.concatenate([t.arrays["escapes"].reshape(-1) for t in matrices])
    if verbatim:
        arrays["slot"] = jnp.concatenate(slots)
        spilled = [t.arrays["verbatim"] for t in matrices if "verbatim" in t.arrays]
        arrays["verbatim"] = jnp.concatenate(spilled)
    return tuple(
        TiledMatrix(arrays, t.codec, t.version, t.shape, t.tile, t.options, place)
        for t, place in zip(matrices, places, strict=True)
    )


def own_arrays(t: TiledMatrix) -> dict[str, jax.Array]:
    """The arrays of the matrix alone."""
    if t.place is None:
        return t.arrays
    place, arrays = t.place, t.arrays
    own = {
        "words": arrays["words"][place.first_slot : place.first_slot + place.slots],
        "escapes": escape_lists(t),
        "base": arrays["base"][place.first_row : place.first_row + t.grid[0]],
    }
    spilled = t.tiles - place.slots
    if spilled:
        slot = arrays["slot"][place.first_tile : place.first_tile + t.tiles]
        own["slot"] = jnp.where(slot >= 0, slot - place.first_slot, slot + place.first_verbatim)
        first = place.first_verbatim
        own["verbatim"] = arrays["verbatim"][first : first + spilled]
    return own


def escape_lists(t: TiledMatrix) -> jax.Array:
    """uint32[C, R, Q, capacity]: the matrix's own escape lists."""
    if t.place is None:
        return t.arrays["escapes"]
    shape = (t.place.slots, *t.arrays["words"].shape[1:3], t.place.capacity)
    first = t.place.first_entry
    return t.arrays["escapes"][first : first + math.prod(shape)].reshape(shape)


def tile_escapes(t: TiledMatrix, slot: jax.Array) -> jax.Array:
    """uint32[R, Q, capacity]: the escape lists of the tile in slot `slot` of the arrays."""
    if t.place is None:
        return t.arrays["escapes"][slot]
    shape = (*t.arrays["words"].shape[1:3], t.place.capacity)
    size = math.prod(shape)
    first = t.place.first_entry + (slot - t.place.first_slot) * size
    return jax.lax.dynamic_slice(t.arrays["escapes"], (first,), (size,)).reshape(shape)
