"""Escapes of single lanes of a `window` unit, without reading a record from its beginning.

In a record (`window_records`) the entries of a warp come round by round, so where those of one
lane are depends on how many escapes each lane of the warp has: n of lane l. Round r begins after
the sum of min(n, r) entries; in it, as many are before that of lane l as lanes before l have n > r.

The numbers n, uint8[..., 128] for units [...], are the array `lane_escapes` of matrices that are
made ready for looking rows up; those of other matrices are read from the records, round by round.
"""

import jax
import jax.numpy as jnp

from codecjax.codecs import window_records
from codecjax.codecs.window_layout import LANES, REGISTERS
from codecjax.codecs.window_records import (
    EXPONENT_SHIFT,
    RECORD_HEADER,
    WARP_LANES,
    WARPS,
    entries_that_fit,
)

NOT_ESCAPED = 256
# Half and register of an entry, which no two escapes of a lane have both.
_PLACES = 2 * REGISTERS
# Above the numbers of all entries of a record.
_NO_ENTRY = 1 << 16


def lane_escapes(records: jax.Array) -> jax.Array:
    """uint8[..., 128]: how many escapes each lane has, of records uint32[..., RECORD]."""
    place, _ = window_records.read(records)
    # The place of an unused entry is above the others, and so is what is taken for its lane.
    lane = jnp.where(place < LANES * _PLACES, place // 2 % LANES, LANES)
    unit = jnp.indices(lane.shape, sparse=True)[:-1]
    numbers = jnp.zeros((*records.shape[:-1], LANES), jnp.uint8)
    return numbers.at[(*unit, lane)].add(1, mode="drop")


def exponents(
    records: jax.Array, of_warp: jax.Array, warp: jax.Array, lane: jax.Array, register: jax.Array
) -> jax.Array:
    """Exponents of the escapes among some weights of N rows of units, Q units a row.

    Args:
      records: uint32[N, Q, RECORD].
      of_warp: uint8[N, Q, 32], escapes of the lanes of the row's warp.
      warp: int32[N], the warp that has the row.
      lane: int32[N, lanes], numbered within the warp.
      register: uint32[N, registers].

    Returns:
      uint32[N, Q, registers, lanes, 2], of the low and high halves; NOT_ESCAPED elsewhere.
      Damaged records give other exponents.
    """
    rounds = jnp.arange(min(entries_that_fit(records.shape[-1]), _PLACES), dtype=jnp.int32)
    escapes, lane = of_warp.astype(jnp.int32)[:, :, None, None], lane[:, None, :, None, None]
    other, ended = jnp.arange(WARP_LANES), escapes <= rounds[:, None]
    before = jnp.minimum(escapes, rounds[:, None]) + ((other < lane) & ~ended)
    number = jnp.where((other == lane) & ended, _NO_ENTRY, before).sum(axis=-1)
    first = (records[..., WARPS] >> (8 * warp[:, None]).astype(jnp.uint32)) & 0xFF
    row, unit = jnp.indices(records.shape[:2], sparse=True)
    place_in_record = number + first.astype(jnp.int32)[..., None, None]
    words = (row[..., None, None], unit[..., None, None], RECORD_HEADER + place_in_record // 2)
    entry = records.at[words].get(mode="clip")
    entry >>= (16 * (place_in_record % 2)).astype(jnp.uint32)
    place = jnp.where(number < _NO_ENTRY, entry % _PLACES, _PLACES)
    exponent = (entry >> EXPONENT_SHIFT) & 0xFF
    wanted = 2 * register[:, None, :, None, None] + jnp.arange(2, dtype=jnp.uint32)
    found = place[:, :, None, :, None] == wanted[..., None]
    return jnp.where(found, exponent[:, :, None, :, None], NOT_ESCAPED).min(axis=-1)
