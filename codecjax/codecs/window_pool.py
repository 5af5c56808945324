"""`window` matrices that share their arrays: a step then has a few arrays a layer to hand over.

A pool's `words`, `base`, `slot` and `verbatim` are those of its matrices, one after another, and
slots count from the pool's beginning. `escapes` is flat, uint32[entries]: lists of one matrix
have one capacity, those of another matrix may have another.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from codecjax.tiles import Place, TiledMatrix


def place_of(t: TiledMatrix) -> Place:
    """Where a matrix that is not dense is in its arrays: at their beginning, or in a pool."""
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
        nbytes=t.nbytes,
    )


def verbatim_tiles(t: TiledMatrix) -> int:
    """V of a matrix that is not dense."""
    return t.tiles - place_of(t).slots


def pooled(matrices: Sequence[TiledMatrix]) -> tuple[TiledMatrix, ...]:
    """The same matrices, those that are not dense in arrays that they share.

    Args:
      matrices: each in arrays of its own, of one tile and width.
    """
    sharing = [t for t in matrices if not t.is_dense]
    if len(sharing) < 2:
        return tuple(matrices)
    arrays = {
        name: jnp.concatenate([t.arrays[name] for t in sharing]) for name in ("words", "base")
    }
    arrays["escapes"] = jnp.concatenate([t.arrays["escapes"].reshape(-1) for t in sharing])
    slotted = any(verbatim_tiles(t) for t in sharing)
    places: list[Place] = []
    slots: list[jax.Array] = []
    tile = row = slot = entry = verbatim = 0
    for t in sharing:
        own = place_of(t)
        nbytes = own.nbytes
        if slotted:
            if "slot" not in t.arrays:
                nbytes += 4 * t.tiles
            mine = t.arrays.get("slot", jnp.arange(t.tiles, dtype=jnp.int32))
            slots.append(jnp.where(mine >= 0, mine + slot, mine - verbatim))
        places.append(Place(tile, row, slot, entry, verbatim, own.slots, own.capacity, nbytes))
        tile, row, slot = tile + t.tiles, row + t.grid[0], slot + own.slots
        entry, verbatim = entry + t.arrays["escapes"].size, verbatim + verbatim_tiles(t)
    if slotted:
        arrays["slot"] = jnp.concatenate(slots)
        spilled = [t.arrays["verbatim"] for t in sharing if verbatim_tiles(t)]
        arrays["verbatim"] = jnp.concatenate(spilled)
    remaining = iter(places)
    return tuple(
        t if t.is_dense else dataclasses.replace(t, arrays=arrays, place=next(remaining))
        for t in matrices
    )


def own_arrays(t: TiledMatrix) -> dict[str, jax.Array]:
    """The arrays by name that the matrix would have if it shared none."""
    if t.place is None:
        return t.arrays
    place, arrays = t.place, t.arrays
    words = arrays["words"][place.first_slot : place.first_slot + place.slots]
    lists = (*words.shape[:3], place.capacity)
    own = {
        "words": words,
        "escapes": arrays["escapes"][place.first_entry :][: math.prod(lists)].reshape(lists),
        "base": arrays["base"][place.first_row : place.first_row + t.grid[0]],
    }
    spilled = verbatim_tiles(t)
    if spilled:
        slot = arrays["slot"][place.first_tile : place.first_tile + t.tiles]
        own["slot"] = jnp.where(slot >= 0, slot - place.first_slot, slot + place.first_verbatim)
        own["verbatim"] = arrays["verbatim"][place.first_verbatim :][:spilled]
    return own


def tile_escapes(t: TiledMatrix, slot: jax.Array) -> jax.Array:
    """uint32[R, Q, capacity]: the escape lists of the tile in slot `slot` of the arrays."""
    place = place_of(t)
    shape = (*t.arrays["words"].shape[1:3], place.capacity)
    size = math.prod(shape)
    first = place.first_entry + (slot - place.first_slot) * size
    escapes = t.arrays["escapes"].reshape(-1)
    return jax.lax.dynamic_slice(escapes, (first,), (size,)).reshape(shape)
