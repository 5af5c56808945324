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
from codecjax.codecs.window_layout import LANES, REGISTERS, column_of
from codecjax.codecs.window_records import (
    DIFFERENCE_SHIFT,
    RECORD_HEADER,
    REGISTER_SHIFT,
    WARP_LANES,
    WARPS,
    entries_that_fit,
)
from codecjax.tiles import UNIT_COLUMNS

# Neighbouring lanes that have a row, in their even or in their odd registers.
LANES_A_ROW = 4
# In a word with three numbers, the bits where the second and the third begin.
_LANES, _OWN = 16, 24


def lane_escapes(records: jax.Array) -> jax.Array:
    """uint8[..., 128]: how many escapes each lane has, of records uint32[..., RECORD]."""
    place, _ = window_records.read(records)
    # The place of an unused entry is above the others, and so is what is taken for its lane.
    lane = jnp.where(place < LANES * 2 * REGISTERS, place // 2 % LANES, LANES)
    unit = jnp.indices(lane.shape, sparse=True)[:-1]
    numbers = jnp.zeros((*records.shape[:-1], LANES), jnp.uint8)
    return numbers.at[(*unit, lane)].add(1, mode="drop")


def differences(
    records: jax.Array, of_warp: jax.Array, warp: jax.Array, lane: jax.Array, odd: jax.Array
) -> jax.Array:
    """What exponents of a row of each of N rows of units are xored with, Q units a row.

    Args:
      records: uint32[N, Q, RECORD].
      of_warp: uint8[N, Q, 32], escapes of the lanes of the warp that has the row.
      warp: int32[N], that warp.
      lane: int32[N], the first of the row's four lanes, numbered within the warp.
      odd: int32[N], 1 if the row is in their odd registers, else 0.

    Returns:
      uint16[N, Q, 128], by column of the unit; 0 but for escapes. Damaged records give others.
    """
    most = min(entries_that_fit(records.shape[-1]), 2 * REGISTERS)
    rounds = jnp.arange(most, dtype=jnp.uint32)[:, None]
    number, other = of_warp[:, :, None].astype(jnp.uint32), jnp.arange(WARP_LANES)
    behind = other - lane[:, None, None, None]
    # Of each round: entries before it, lanes before the row's that have one, which of the row's do.
    there = jnp.where(
        behind < 0, 1 << _LANES, jnp.where(behind < LANES_A_ROW, 1 << (_OWN + behind), 0)
    ).astype(jnp.uint32)
    sums = jnp.minimum(number, rounds) + jnp.where(number > rounds, there, jnp.uint32(0))
    sums = sums.sum(axis=-1, dtype=jnp.uint32)[..., None]
    own, each = sums >> _OWN, jnp.arange(LANES_A_ROW, dtype=jnp.uint32)
    first = (records[..., WARPS] >> (8 * warp[:, None]).astype(jnp.uint32)) & 0xFF
    entry = first[..., None, None] + (sums % (1 << _LANES)) + ((sums >> _LANES) & 0x3F)
    entry += jax.lax.population_count(own & ((1 << each) - 1))

    row, unit = jnp.indices(records.shape[:2], sparse=True)
    row, unit = row[..., None, None], unit[..., None, None]
    words = records.at[row, unit, RECORD_HEADER + entry // 2].get(mode="clip")
    found = words >> (16 * (entry % 2))
    half, register = found & 1, (found >> REGISTER_SHIFT) % REGISTERS
    column = column_of(each, register, half).astype(jnp.int32)
    is_here = ((own >> each) & 1 == 1) & (
        register % 2 == odd.astype(jnp.uint32)[:, None, None, None]
    )
    place = (row * records.shape[1] + unit) * UNIT_COLUMNS + column
    size = records.shape[0] * records.shape[1] * UNIT_COLUMNS
    value = ((found >> DIFFERENCE_SHIFT) & 0xFF).astype(jnp.uint16)
    flat = jnp.zeros(size, jnp.uint16).at[jnp.where(is_here, place, size)].set(value, mode="drop")
    return flat.reshape(*records.shape[:2], UNIT_COLUMNS)
