"""`window` matrices that share their arrays: a step then has a few arrays a layer to hand over.

A pool's `words`, `base`, `slot` and `verbatim` are those of its matrices, one after another, and
slots count from the pool's beginning. So are its `escapes`, whose records have the length of the
longest among them: the others are padded with words 0, which are unused entries.
"""

import dataclasses
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
        first_verbatim=0,
        slots=t.arrays["words"].shape[0],
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
    record = max(t.arrays["escapes"].shape[-1] for t in sharing)
    padded = [_padded(t.arrays["escapes"], record) for t in sharing]
    arrays["escapes"] = jnp.concatenate(padded)
    slotted = any(verbatim_tiles(t) for t in sharing)
    places: list[Place] = []
    slots: list[jax.Array] = []
    tile = row = slot = verbatim = 0
    for t, escapes in zip(sharing, padded, strict=True):
        own = place_of(t)
        nbytes = own.nbytes + escapes.nbytes - t.arrays["escapes"].nbytes
        if slotted:
            if "slot" not in t.arrays:
                nbytes += 4 * t.tiles
            mine = t.arrays.get("slot", jnp.arange(t.tiles, dtype=jnp.int32))
            slots.append(jnp.where(mine >= 0, mine + slot, mine - verbatim))
        places.append(Place(tile, row, slot, verbatim, own.slots, nbytes))
        tile, row, slot = tile + t.tiles, row + t.grid[0], slot + own.slots
        verbatim += verbatim_tiles(t)
    if slotted:
        arrays["slot"] = jnp.concatenate(slots)
        spilled = [t.arrays["verbatim"] for t in sharing if verbatim_tiles(t)]
        arrays["verbatim"] = jnp.concatenate(spilled)
    remaining = iter(places)
    return tuple(
        t if t.is_dense else dataclasses.replace(t, arrays=arrays, place=next(remaining))
        for t in matrices
    )


def _padded(escapes: jax.Array, record: int) -> jax.Array:
    """uint32[C, R, Q, record]: records of one length with words 0 at their ends."""
    return jnp.pad(escapes, ((0, 0), (0, 0), (0, 0), (0, record - escapes.shape[-1])))


def own_arrays(t: TiledMatrix) -> dict[str, jax.Array]:
    """The arrays by name that the matrix would have if it shared none; records stay padded."""
    if t.place is None:
        return t.arrays
    place, arrays = t.place, t.arrays
    slots = slice(place.first_slot, place.first_slot + place.slots)
    own = {
        "words": arrays["words"][slots],
        "escapes": arrays["escapes"][slots],
        "base": arrays["base"][place.first_row : place.first_row + t.grid[0]],
    }
    spilled = verbatim_tiles(t)
    if spilled:
        slot = arrays["slot"][place.first_tile : place.first_tile + t.tiles]
        own["slot"] = jnp.where(slot >= 0, slot - place.first_slot, slot + place.first_verbatim)
        own["verbatim"] = arrays["verbatim"][place.first_verbatim :][:spilled]
    return own
