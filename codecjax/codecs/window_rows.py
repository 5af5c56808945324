"""Rows of a `window` matrix, read without decoding the tiles that they are in.

A row of a unit is in four neighbouring lanes, in their even or in their odd registers: see
`window_layout`. So it takes the words of these lanes, twice as many as are the row's, and its
escapes, see `window_lists`.
"""

import jax
import jax.numpy as jnp

from codecjax.codecs import parts, window_layout
from codecjax.codecs.window_lists import NOT_ESCAPED, escape_lists
from codecjax.codecs.window_pool import place_of, verbatim_tiles
from codecjax.codecs.window_records import WARP_LANES
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, TiledMatrix

# Lanes that have a row, and rows that a warp's even or odd registers have.
_LANES_A_ROW, _ROWS_AT_ONCE = 4, 8
# A weight takes about 20 bytes of temporaries.
_WEIGHTS_AT_ONCE = 1 << 22


def read_rows(t: TiledMatrix, rows: jax.Array) -> jax.Array:
    """Reads rows of a matrix of this codec that is not dense.

    Args:
      t: the matrix, [OUT, K].
      rows: int32[N], from 0 to OUT - 1.

    Returns:
      bf16[N, K].
    """
    at_once = min(len(rows), max(1, _WEIGHTS_AT_ONCE // t.shape[1]))

    def part(first: jax.Array | int) -> tuple[jax.Array]:
        return (_read(t, jax.lax.dynamic_slice_in_dim(rows, first, at_once)),)

    return parts.in_parts(part, len(rows), at_once)[0]


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


def _decode(t: TiledMatrix, slot: jax.Array, row: jax.Array, base: jax.Array) -> jax.Array:
    """bf16[N, A, columns]: row int32[N] of compressed tiles int32[N, A], its base uint8[N]."""
    count, across = slot.shape
    down, in_unit = row // UNIT_ROWS, row % UNIT_ROWS
    warp, in_warp = in_unit // (2 * _ROWS_AT_ONCE), in_unit % (2 * _ROWS_AT_ONCE)
    odd, lane = in_warp // _ROWS_AT_ONCE, _LANES_A_ROW * (in_warp % _ROWS_AT_ONCE)

    def of_row(slot: jax.Array, down: jax.Array, lane: jax.Array) -> jax.Array:
        words = t.arrays["words"]
        size = (1, 1, *words.shape[2:4], _LANES_A_ROW)
        return jax.lax.dynamic_slice(words, (slot, down, 0, 0, lane), size)[0, 0]

    of_tiles = jax.vmap(of_row, in_axes=(0, None, None))
    words = jax.vmap(of_tiles)(slot, down, WARP_LANES * warp + lane)
    records = t.arrays["escapes"][slot, down[:, None]]
    units = across * records.shape[2]

    def of_units(of_rows: jax.Array) -> jax.Array:
        """[N * units, ...] of [N, ...]."""
        return jnp.repeat(of_rows, units, axis=0)

    # The other row's registers get this row's exponents, and are not looked at.
    bias = of_units(base.astype(jnp.uint32) * jnp.uint32(1 << 7 | 1 << 23))[:, None, None]
    registers = window_layout.unpack_all(
        words.reshape(count * units, -1, _LANES_A_ROW),
        jnp.broadcast_to(bias, (count * units, window_layout.REGISTERS, 1)),
        t.options_dict["width"],
    )
    of_both = registers.reshape(count * units, -1, 2, _LANES_A_ROW)
    odd = of_units(odd.astype(jnp.uint32))[:, None]
    pairs = jnp.where((odd == 1)[..., None], of_both[:, :, 1], of_both[:, :, 0])

    lanes = of_units(lane[:, None] + jnp.arange(_LANES_A_ROW)).astype(jnp.uint32)
    lists = escape_lists(records.reshape(count * units, -1), of_units(warp), lanes)
    found = lists.find(2 * jnp.arange(of_both.shape[1], dtype=jnp.uint32) + odd)
    for half, exponent in enumerate(found):
        patched = pairs & jnp.uint32(~(0x7F80 << 16 * half) & 0xFFFFFFFF)
        patched |= exponent << jnp.uint32(7 + 16 * half)
        pairs = jnp.where(exponent == NOT_ESCAPED, pairs, patched)
    weights = jax.lax.bitcast_convert_type(pairs, jnp.bfloat16)
    return weights.reshape(count, across, -1)
