"""Rows of a `window` matrix, read without decoding the tiles that they are in.

A row of a unit is in four neighbouring lanes, in their even or in their odd registers: see
`window_layout`. So it takes the words of these lanes, twice as many as are the row's, and its
escapes, see `window_lists`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from codecjax.codecs import parts, window_layout, window_lists, window_records
from codecjax.codecs.window_lists import LANES_A_ROW
from codecjax.codecs.window_pool import place_of, verbatim_tiles
from codecjax.codecs.window_records import WARP_LANES
from codecjax.tiles import UNIT_ROWS, TiledMatrix

# Rows that a warp's even or odd registers have.
_ROWS_OF_LANES = 8
# A weight takes some 30 bytes of temporaries.
_WEIGHTS_AT_ONCE = 1 << 22


def inside(rows: jax.Array, count: int) -> jax.Array:
    """The numbers from 0 to count - 1 that int32 ones stand for.

    Those below 0 count from the end, and those beyond either end become it.
    """
    return jnp.clip(jnp.where(rows < 0, rows + count, rows), 0, count - 1)


def read_rows(t: TiledMatrix, rows: jax.Array) -> jax.Array:
    """Reads rows of a matrix of this codec that is not dense.

    Args:
      t: the matrix, [OUT, K].
      rows: int32[N], see `inside`.

    Returns:
      bf16[N, K].
    """
    rows = inside(rows, t.shape[0])
    at_once = min(len(rows), max(1, _WEIGHTS_AT_ONCE // t.shape[1]))

    def part(first: jax.Array | int) -> tuple[jax.Array]:
        return (_read(t, jax.lax.dynamic_slice_in_dim(rows, first, at_once)),)

    return parts.in_parts(part, len(rows), at_once)[0]


@jax.jit
def ready_for_rows(t: TiledMatrix) -> TiledMatrix:
    """The matrix, of which rows are read faster: with the array `lane_escapes`, if not dense."""
    if t.is_dense:
        return t
    records = t.arrays["escapes"]
    count = records.shape[0]
    at_once = parts.tile_rows_at_once(count, math.prod(t.tile))

    def part(first: jax.Array | int) -> tuple[jax.Array]:
        here = jax.lax.dynamic_slice_in_dim(records, first, at_once)
        return (window_lists.lane_escapes(here),)

    (lane_escapes,) = parts.in_parts(part, count, at_once)
    return dataclasses.replace(t, arrays={**t.arrays, "lane_escapes": lane_escapes})


def _read(t: TiledMatrix, rows: jax.Array) -> jax.Array:
    place, across = place_of(t), t.grid[1]
    tile_row, row = rows // t.tile[0], rows % t.tile[0]
    slot = (tile_row * across)[:, None] + jnp.arange(across)
    if verbatim_tiles(t):
        slot = t.arrays["slot"][place.first_tile + slot]
    else:
        slot = place.first_slot + slot
    base = t.arrays["base"][place.first_row + tile_row, row]
    decoded = _decode(t, slot, row, base)
    if verbatim_tiles(t):
        verbatim = t.arrays["verbatim"][-(slot + 1), row[:, None]]
        decoded = jnp.where((slot < 0)[..., None], verbatim, decoded)
    return decoded.reshape(len(rows), -1)[:, : t.shape[1]]


def _words(words: jax.Array, slot: jax.Array, down: jax.Array, lane: jax.Array) -> jax.Array:
    """uint32[N, units, n, 4]: what four lanes have in units of row `down` of tiles.

    Args:
      words: uint32[C, R, Q, n, 128], as they are stored.
      slot: int32[N, A], of the tiles.
      down: int32[N].
      lane: int32[N], the first of the four.
    """
    *units, count, lanes = words.shape
    flat, across = words.reshape(*units, count * lanes), jnp.arange(units[-1])
    lane = lane[:, None, None] + jnp.arange(LANES_A_ROW)
    place = window_layout.place_of_word(jnp.arange(count)[:, None], lane, count)
    units_of_row = (slot[..., None], down[:, None, None], across)
    here = (*(each[..., None, None] for each in units_of_row), place[:, None, None])
    found = flat.at[here].get(mode="clip")
    return found.reshape(len(slot), -1, count, LANES_A_ROW)


def _decode(t: TiledMatrix, slot: jax.Array, row: jax.Array, base: jax.Array) -> jax.Array:
    """bf16[N, A, columns]: row int32[N] of compressed tiles int32[N, A], its base uint8[N]."""
    count, across = slot.shape
    down, in_unit = row // UNIT_ROWS, row % UNIT_ROWS
    warp, in_warp = in_unit // (2 * _ROWS_OF_LANES), in_unit % (2 * _ROWS_OF_LANES)
    odd, lane = in_warp // _ROWS_OF_LANES, LANES_A_ROW * (in_warp % _ROWS_OF_LANES)

    def units(array: jax.Array, first_lane: jax.Array, lanes: int) -> jax.Array:
        """[N, Q, ..., lanes]: of the row's units, what these lanes have in [C, R, Q, ..., 128]."""

        def of_tile(slot: jax.Array, down: jax.Array, first_lane: jax.Array) -> jax.Array:
            start = (slot, down, *[0] * (array.ndim - 3), first_lane)
            return jax.lax.dynamic_slice(array, start, (1, 1, *array.shape[2:-1], lanes))[0, 0]

        of_row = jax.vmap(of_tile, in_axes=(0, None, None))
        parts = jax.vmap(of_row)(slot, down, first_lane)
        return parts.reshape(count, -1, *parts.shape[3:])

    words = _words(t.arrays["words"], slot, down, WARP_LANES * warp + lane)
    # The other row's registers get this row's exponents, and are not looked at.
    bias = (base.astype(jnp.uint32) * jnp.uint32(1 << 7 | 1 << 23))[:, None, None, None]
    bias = jnp.broadcast_to(bias, (count, 1, window_layout.REGISTERS, 1))
    registers = window_layout.unpack_all(words, bias, t.options_dict["width"])
    split = registers.reshape(*words.shape[:2], -1, 2, LANES_A_ROW)
    own = jnp.where((odd == 1)[:, None, None, None], split[:, :, :, 1], split[:, :, :, 0])
    bits = jax.lax.bitcast_convert_type(own, jnp.uint16)

    records = units(t.arrays["escapes"], jnp.zeros_like(lane), t.arrays["escapes"].shape[-1])
    if "lane_escapes" in t.arrays:
        of_warp = units(t.arrays["lane_escapes"], WARP_LANES * warp, WARP_LANES)
    else:
        of_lane = window_lists.lane_escapes(records)
        by_warp = of_lane.reshape(count, -1, window_records.WARPS, WARP_LANES)
        of_warp = by_warp[jnp.arange(count), :, warp]
    difference = window_lists.differences(records, of_warp, warp, lane, odd)
    bits = bits.reshape(difference.shape) ^ difference << 7
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16).reshape(count, across, -1)
