"""Units whose exponents are digits above their rows' bases, with escapes: of `window` and `rans`.

An exponent outside of its row's window is an *escape*: its digit is 0 and how it differs from its
row's base stands in its unit's *record*, see `window_records`. Registers are those of
`window_layout`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import window_layout, window_records
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, page_bytes, units_per_tile

# What a matrix may cost more so that no tile of it is verbatim: kernels are then faster.
_MOST_EXTRA = 1.01


def bits_of(w: jax.Array) -> jax.Array:
    """uint16 bit patterns of bf16."""
    return jax.lax.bitcast_convert_type(w, jnp.uint16)


def padded_to(w: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """[OUT, K] with zeros up to whole tiles."""
    return jnp.pad(w, ((0, -w.shape[0] % tile[0]), (0, -w.shape[1] % tile[1])))


def registers_of(
    bits: jax.Array, base: jax.Array, columns: int, width: int, tile: tuple[int, int]
) -> jax.Array:
    """Registers with digits for exponents, ESCAPED for those outside of the window.

    Args:
      bits: uint16[tile rows * rows, K] bit patterns, of whole tiles.
      base: int32[tile rows * rows].
      columns: how many of the K columns are the matrix's; the others' registers are 0.
      width: exponents in a window.
      tile: (rows, columns).

    Returns:
      uint32[tile rows, tiles across, R, Q, 32, 128].
    """
    digit = ((bits >> 7) & 0xFF) - base[:, None].astype(jnp.uint16)
    digit = jnp.where(digit < width, digit, window_layout.ESCAPED)
    stored = (bits & 0x807F) | (digit << 7)
    if columns != bits.shape[1]:
        stored = jnp.where(jnp.arange(bits.shape[1]) < columns, stored, jnp.uint16(0))
    # The barrier has them put in order once, not again for each of their uses.
    return jax.lax.optimization_barrier(window_layout.fragment_order(stored, tile))


def longest_lists(flags: jax.Array) -> jax.Array:
    """int32[T]: escapes of each tile's unit that has most, given flags uint32[T, R, Q, 2, 128]."""
    of_unit = jax.lax.population_count(flags).astype(jnp.int32).sum(axis=(-2, -1))
    return of_unit.max(axis=(-2, -1))


def choose_record(
    longest: np.ndarray, tile: tuple[int, int], width: int, other_bytes: float
) -> tuple[int, float]:
    """RECORD with the fewest bytes in all, and those bytes.

    Tiles whose longest list does not fit are stored verbatim. The smallest RECORD that leaves
    no such tile is preferred where it costs at most 1 % more.

    Args:
      longest: int[T], escapes of the unit of each tile that has most.
      tile: (rows, columns).
      width: exponents in a window, 8, 11 or 16.
      other_bytes: of a compressed unit, its record aside.
    """
    step = window_records.RECORD_STEP[width]
    total: dict[int, float] = {}
    for record in itertools.count(step, step):
        room = window_records.entries_that_fit(record)
        compressed = int(np.sum(longest <= room))
        verbatim = longest.size - compressed
        compressed_bytes = units_per_tile(tile) * (other_bytes + 4 * record)
        total[record] = compressed * compressed_bytes + verbatim * page_bytes(tile)
        if not verbatim or room == window_records.MOST_ENTRIES:
            break
    best = min(total, key=lambda each: total[each])
    if not verbatim and total[record] <= _MOST_EXTRA * total[best]:
        best = record
    return best, total[best]


@functools.partial(jax.jit, static_argnames=("tile", "record"))
def records_of(
    w: jax.Array, base: jax.Array, flags: jax.Array, tile: tuple[int, int], record: int
) -> jax.Array:
    """Escape records uint32[T, R, Q, RECORD].

    Args:
      w: bf16[OUT, K].
      base: uint8[tile rows, rows].
      flags: uint32[T, R, Q, 2, 128].
      tile: (rows, columns).
      record: RECORD.
    """
    rows, columns = tile
    bases = base.reshape(-1)
    tiles_across = -(-w.shape[1] // columns)
    index = [jnp.arange(size, dtype=jnp.uint32) for size in flags.shape[:3]]
    tile_number, down, across = jnp.ix_(*index)
    top = (tile_number // tiles_across * rows + down * UNIT_ROWS)[..., None]
    left = (tile_number % tiles_across * columns + across * UNIT_COLUMNS)[..., None]

    def differences_at(lane: jax.Array, register: jax.Array, half: jax.Array) -> jax.Array:
        row = top + window_layout.row_of(lane, register)
        column = left + window_layout.column_of(lane, register, half)
        bits = bits_of(w.at[row, column].get(mode="clip"))
        exponent = ((bits >> 7) & 0xFF).astype(jnp.uint32)
        return exponent ^ bases.at[row].get(mode="clip").astype(jnp.uint32)

    return window_records.write(flags, differences_at, record)


def bias_of(base: jax.Array) -> jax.Array:
    """uint32[R, 1, 32, 128]: what to add to registers of digits, of base uint8[rows]."""
    shifted = base.astype(jnp.uint32).reshape(-1, 1, 4, 2, 8) * jnp.uint32(1 << 7 | 1 << 23)
    by_lane = jnp.repeat(shifted, 4, axis=-1)
    halves = jnp.swapaxes(by_lane, 2, 3).reshape(-1, 1, 2, window_layout.LANES)
    return jnp.tile(halves, (1, 1, window_layout.REGISTERS // 2, 1))


def patch(registers: jax.Array, place: jax.Array, difference: jax.Array) -> jax.Array:
    """Xors the exponents of a unit's escapes, which are bit patterns in uint32[32, 128]."""
    flat = jax.lax.bitcast_convert_type(registers, jnp.uint16).reshape(-1)
    value = flat.at[place].get(mode="clip") ^ (difference << 7).astype(jnp.uint16)
    patched = flat.at[place].set(value, mode="drop").reshape(*registers.shape, 2)
    return jax.lax.bitcast_convert_type(patched, jnp.uint32)


def weights_of(registers: jax.Array, escapes: jax.Array) -> jax.Array:
    """The weights of one tile.

    Args:
      registers: uint32[R, Q, 32, 128], bit patterns of bf16 but for the exponents of escapes.
      escapes: uint32[R, Q, RECORD].

    Returns:
      bf16[rows, columns].
    """
    patched = jax.vmap(jax.vmap(patch))(registers, *window_records.read(escapes))
    pairs = jax.lax.bitcast_convert_type(window_layout.row_order(patched), jnp.bfloat16)
    return pairs.reshape(pairs.shape[0], -1)
