"""Matrices that share arrays, of every codec that has any: a step has few a layer to hand over.

A pool's arrays are those of its matrices, one after another; slots count from the pool's
beginning, and so do the positions in `stream` that `starts` has. The records in `escapes` have
the length of the longest among them: the others are padded with words 0, which are unused
entries. Tables that several matrices have are in the pool once.

The stream ends with words 0 that nobody reads, so that layers alike have streams of one length and
are multiplied by one compiled kernel.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.tiles import Place, TiledMatrix

# Arrays whose first axis is the slot, the tile row, and the table.
BY_SLOT = ("words", "escapes", "lane_escapes", "states", "starts", "prediction")
BY_ROW = ("base", "rows", "scale")
BY_TABLE = ("table", "step")
# At least so many parts of a stream's length are longer than what is added to its end: of the 2.7
# bits a weight that `rans` has there, 0.01 at most.
_STREAM_PARTS = 256


def place_of(t: TiledMatrix) -> Place:
    """Where a matrix that is not dense is in its arrays: at their beginning, or in a pool."""
    if t.place is not None:
        return t.place
    return Place(
        first_tile=0,
        first_row=0,
        first_slot=0,
        first_verbatim=0,
        slots=next(t.arrays[name].shape[0] for name in BY_SLOT if name in t.arrays),
        nbytes=t.nbytes,
        end_table=_length(t, "table"),
        end_word=_length(t, "stream"),
    )


def place_to_read(t: TiledMatrix) -> Place:
    """`place_of` without what decoding does not need, and what would tell like matrices apart."""
    return dataclasses.replace(place_of(t), nbytes=0, first_word=0, end_word=0, end_table=0)


def _length(t: TiledMatrix, name: str) -> int:
    """How long array `name` of a matrix that shares none is; 0 where its codec has none."""
    return t.arrays[name].shape[0] if name in t.arrays else 0


def verbatim_tiles(t: TiledMatrix) -> int:
    """V of a matrix that is not dense."""
    return t.tiles - place_of(t).slots


def pooled(matrices: Sequence[TiledMatrix]) -> tuple[TiledMatrix, ...]:
    """The same matrices, those that are not dense in arrays that they share.

    Args:
      matrices: each in arrays of its own, of one codec, tile and options.
    """
    sharing = [t for t in matrices if not t.is_dense]
    if len(sharing) < 2:
        return tuple(matrices)
    record = max(
        (t.arrays["escapes"].shape[-1] for t in sharing if "escapes" in t.arrays), default=0
    )
    slotted = any(verbatim_tiles(t) for t in sharing)
    places: list[Place] = []
    own: list[dict[str, jax.Array]] = []
    tables_before = 0
    places_of_tables: dict[bytes, Place] = {}
    end = Place(0, 0, 0, 0, 0, 0)
    for t in sharing:
        arrays = dict(t.arrays)
        if record:
            arrays["escapes"] = _padded(t.arrays["escapes"], record)
        if slotted:
            mine = t.arrays.get("slot", jnp.arange(t.tiles, dtype=jnp.int32))
            arrays["slot"] = jnp.where(mine >= 0, mine + end.first_slot, mine - end.first_verbatim)
        if "starts" in arrays:
            arrays["starts"] += jnp.uint32(end.end_word)
        tables = {name: arrays[name] for name in BY_TABLE if name in arrays}
        key = b"".join(np.asarray(array).tobytes() for array in tables.values())
        known = places_of_tables.get(key)
        if known is not None:
            for name in tables:
                del arrays[name]
        own.append(arrays)
        place = dataclasses.replace(
            end,
            slots=place_of(t).slots,
            nbytes=sum(array.nbytes for array in arrays.values()),
            first_word=end.end_word,
            end_word=end.end_word + _length(t, "stream"),
            first_table=known.first_table if known else tables_before,
            end_table=known.end_table if known else tables_before + _length(t, "table"),
        )
        places_of_tables.setdefault(key, place)
        tables_before = max(tables_before, place.end_table)
        places.append(place)
        end = dataclasses.replace(
            place,
            first_tile=place.first_tile + t.tiles,
            first_row=place.first_row + t.grid[0],
            first_slot=place.first_slot + place.slots,
            first_verbatim=place.first_verbatim + verbatim_tiles(t),
        )
    if end.end_word:
        padding = jnp.zeros(-end.end_word % _granule(end.end_word), own[-1]["stream"].dtype)
        own[-1]["stream"] = jnp.concatenate([own[-1]["stream"], padding])
        places[-1] = dataclasses.replace(places[-1], nbytes=places[-1].nbytes + padding.nbytes)
    # Not every one of them has verbatim tiles, or tables of its own.
    names = dict.fromkeys(name for arrays in own for name in arrays)
    shared = {
        name: jnp.concatenate([arrays[name] for arrays in own if name in arrays]) for name in names
    }
    remaining = iter(places)
    return tuple(
        t if t.is_dense else dataclasses.replace(t, arrays=shared, place=next(remaining))
        for t in matrices
    )


def _granule(words: int) -> int:
    """What the length of a stream of so many words is rounded up to a multiple of."""
    return 1 << max(0, (words // _STREAM_PARTS).bit_length() - 1)


def _padded(escapes: jax.Array, record: int) -> jax.Array:
    """uint32[C, R, Q, record]: records of one length with words 0 at their ends."""
    return jnp.pad(escapes, ((0, 0), (0, 0), (0, 0), (0, record - escapes.shape[-1])))


def own_arrays(t: TiledMatrix) -> dict[str, jax.Array]:
    """The arrays by name that the matrix would have if it shared none; records stay padded."""
    if t.place is None:
        return t.arrays
    place = t.place
    parts = (
        (BY_SLOT, slice(place.first_slot, place.first_slot + place.slots)),
        (BY_ROW, slice(place.first_row, place.first_row + t.grid[0])),
        (BY_TABLE, slice(place.first_table, place.end_table)),
        (("stream",), slice(place.first_word, place.end_word)),
    )
    where = {name: part for names, part in parts for name in names}
    own = {name: t.arrays[name][part] for name, part in where.items() if name in t.arrays}
    if "starts" in own:
        own["starts"] -= jnp.uint32(place.first_word)
    spilled = verbatim_tiles(t)
    if spilled:
        slot = t.arrays["slot"][place.first_tile : place.first_tile + t.tiles]
        own["slot"] = jnp.where(slot >= 0, slot - place.first_slot, slot + place.first_verbatim)
        own["verbatim"] = t.arrays["verbatim"][place.first_verbatim :][:spilled]
    return own
