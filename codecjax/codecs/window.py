"""The `window` codec: lossless, fixed length, decoded without branches.

A weight is a sign-and-mantissa byte and a digit that says which of `width` neighbouring
exponents it has, counted from its row's base (the window that covers most of the row). A
weight outside the window is an *escape*: its digit is 0 and its exponent stands in its unit's
escape *record*. Bits are laid out as `window_layout` and `window_records` say.

Arrays, for C compressed and V verbatim tiles (C + V = T), tiles of R x Q units:

    words     uint32[C, R, Q, WORDS[width], 128]
    escapes   uint32[C, R, Q, RECORD]     one record a unit, multiples of RECORD_STEP[width]
    base      uint8[tile rows of the grid, rows of a tile]   exponent of digit 0

and, only where V > 0 (else tile t is compressed tile t):

    slot      int32[T]    s >= 0: compressed tile s; s < 0: verbatim tile -(s + 1)
    verbatim  bf16[V, rows, columns]      tiles whose escapes would outgrow bf16

Several matrices may share their arrays, see `window_pool`.

A matrix that this would expand (few rows, random exponents) is stored as the single array
`dense` bf16[OUT, K].
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import window_layout, window_pool, window_records
from codecjax.codecs.window_bases import row_bases
from codecjax.codecs.window_pool import place_of, verbatim_tiles
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, TiledMatrix, page_bytes, units_per_tile

VERSION = 3
OPTIONS = {"width": 11}
CHOICES = {"width": tuple(window_layout.WORDS)}
pooled = window_pool.pooled


# Weights that are packed at a time: few temporaries, and enough to keep a GPU busy.
_WEIGHTS_AT_ONCE = 1 << 24
# What a matrix may cost more so that no tile of it is verbatim: kernels are then faster.
_MOST_EXTRA = 1.01


def _with_digits(bits: jax.Array, base: jax.Array, columns: int, width: int) -> jax.Array:
    """Bit patterns uint16[rows, K] with digits for exponents, and 0 beyond `columns` columns."""
    digit = ((bits >> 7) & 0xFF) - base[:, None].astype(jnp.uint16)
    digit = jnp.where(digit < width, digit, window_layout.ESCAPED)
    stored = (bits & 0x807F) | (digit << 7)
    if columns != bits.shape[1]:
        stored = jnp.where(jnp.arange(bits.shape[1]) < columns, stored, jnp.uint16(0))
    return stored


@functools.partial(jax.jit, static_argnames=("tile", "width"))
def _pack(
    w: jax.Array, tile: tuple[int, int], width: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Encodes all but the records.

    Returns:
      words: uint32[T, R, Q, WORDS[width], 128].
      flags: uint32[T, R, Q, 2, 128], as `window_records.write` wants them.
      base: uint8[tile rows, rows].
      longest: int32[T], escapes of the unit of each tile that has most.
    """
    rows, columns = tile
    padded = jnp.pad(w, ((0, -w.shape[0] % rows), (0, -w.shape[1] % columns)))
    tile_rows = padded.shape[0] // rows
    at_once = min(tile_rows, max(1, _WEIGHTS_AT_ONCE // (rows * padded.shape[1])))

    def part(first: jax.Array | int) -> tuple[jax.Array, ...]:
        block = jax.lax.dynamic_slice_in_dim(padded, first * rows, at_once * rows)
        bits = jax.lax.bitcast_convert_type(block, jnp.uint16)
        base = row_bases(bits, w.shape[1], width)
        stored = _with_digits(bits, base, w.shape[1], width)
        # The barrier has them put in order once, not again for each of their uses.
        registers = jax.lax.optimization_barrier(window_layout.fragment_order(stored, tile))
        words = window_layout.pack(registers, width)
        flags = window_layout.escape_flags(registers)
        return words, flags, base.astype(jnp.uint8).reshape(at_once, rows)

    def put_part(number: jax.Array, whole: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # The last part may begin among the rows of the one before it.
        first = jnp.minimum(number * at_once, tile_rows - at_once)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(array, piece, first, axis=0)
            for array, piece in zip(whole, part(first), strict=True)
        )

    if at_once == tile_rows:
        words, flags, base = part(0)
    else:
        whole = tuple(
            jnp.zeros((tile_rows, *piece.shape[1:]), piece.dtype)
            for piece in jax.eval_shape(part, 0)
        )
        words, flags, base = jax.lax.fori_loop(0, -(-tile_rows // at_once), put_part, whole)
    words, flags = (array.reshape(-1, *array.shape[2:]) for array in (words, flags))
    longest = jax.lax.population_count(flags).astype(jnp.int32).sum(axis=(-2, -1))
    return words, flags, base, longest.max(axis=(-2, -1))


@functools.partial(jax.jit, static_argnames=("tile", "record"))
def _records(w: jax.Array, flags: jax.Array, tile: tuple[int, int], record: int) -> jax.Array:
    """Escape records uint32[T, R, Q, RECORD] of flags uint32[T, R, Q, 2, 128]."""
    rows, columns = tile
    tiles_across = -(-w.shape[1] // columns)
    index = [jnp.arange(size, dtype=jnp.uint32) for size in flags.shape[:3]]
    tile_number, down, across = jnp.ix_(*index)
    top = (tile_number // tiles_across * rows + down * UNIT_ROWS)[..., None]
    left = (tile_number % tiles_across * columns + across * UNIT_COLUMNS)[..., None]

    def exponents_at(lane: jax.Array, register: jax.Array, half: jax.Array) -> jax.Array:
        row = top + window_layout.row_of(lane, register)
        column = left + window_layout.column_of(lane, register, half)
        bits = jax.lax.bitcast_convert_type(w.at[row, column].get(mode="clip"), jnp.uint16)
        return ((bits >> 7) & 0xFF).astype(jnp.uint32)

    return window_records.write(flags, exponents_at, record)


def _tile_bytes(record: int, tile: tuple[int, int], width: int) -> int:
    return units_per_tile(tile) * 4 * (window_layout.WORDS[width] * window_layout.LANES + record)


def _choose_record(longest: np.ndarray, tile: tuple[int, int], width: int) -> tuple[int, int]:
    """RECORD with the fewest bytes in all, and those bytes.

    Tiles whose longest list does not fit are stored verbatim. The smallest RECORD that leaves
    no such tile is preferred where it costs at most 1 % more.

    Args:
      longest: int[T], escapes of the unit of each tile that has most.
      tile: (rows, columns).
      width: 8, 11 or 16.
    """
    step = window_records.RECORD_STEP[width]
    total: dict[int, int] = {}
    for record in itertools.count(step, step):
        room = window_records.entries_that_fit(record)
        compressed = int(np.sum(longest <= room))
        verbatim = longest.size - compressed
        total[record] = compressed * _tile_bytes(record, tile, width) + verbatim * page_bytes(tile)
        if not verbatim or room == window_records.MOST_ENTRIES:
            break
    best = min(total, key=lambda each: total[each])
    if not verbatim and total[record] <= _MOST_EXTRA * total[best]:
        best = record
    return best, total[best]


def encode(w: jax.Array, tile: tuple[int, int], width: int) -> TiledMatrix:
    """Encodes bf16[OUT, K]; every bit pattern survives."""
    shape = (w.shape[0], w.shape[1])
    options = (("width", width),)
    words, flags, base, longest_on_device = _pack(w, tile, width)
    longest = np.asarray(longest_on_device)
    record, total = _choose_record(longest, tile, width)
    compressed = longest <= window_records.entries_that_fit(record)
    if total + base.size >= 2 * w.size or not compressed.any():
        return TiledMatrix({"dense": w}, "window", VERSION, shape, tile, options)
    escapes = _records(w, flags, tile, record)
    arrays = {"words": words, "escapes": escapes, "base": base}
    if not compressed.all():
        keep, spill = np.flatnonzero(compressed), np.flatnonzero(~compressed)
        slot = np.where(compressed, np.cumsum(compressed) - 1, -np.cumsum(~compressed))
        arrays = {
            "words": words[keep],
            "escapes": escapes[keep],
            "base": base,
            "slot": jnp.asarray(slot, jnp.int32),
            "verbatim": _verbatim_tiles(w, jnp.asarray(spill), tile),
        }
    return TiledMatrix(arrays, "window", VERSION, shape, tile, options)


@functools.partial(jax.jit, static_argnames=("tile",))
def _verbatim_tiles(w: jax.Array, indices: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """bf16[V, rows, columns]: the tiles numbered by int32[V], edges padded with zeros."""
    rows, columns = tile
    padded = jnp.pad(w, ((0, -w.shape[0] % rows), (0, -w.shape[1] % columns)))
    across = padded.shape[1] // columns

    def cut(index: jax.Array) -> jax.Array:
        start = (index // across * rows, index % across * columns)
        return jax.lax.dynamic_slice(padded, start, tile)

    return jax.lax.map(cut, indices)


def patch(registers: jax.Array, place: jax.Array, exponent: jax.Array) -> jax.Array:
    """Puts the exponents of a unit's escapes into its bit patterns uint32[32, 128]."""
    flat = jax.lax.bitcast_convert_type(registers, jnp.uint16).reshape(-1)
    value = flat.at[place].get(mode="clip") & jnp.uint16(0x807F)
    value |= (exponent << 7).astype(jnp.uint16)
    patched = flat.at[place].set(value, mode="drop").reshape(*registers.shape, 2)
    return jax.lax.bitcast_convert_type(patched, jnp.uint32)


def decode_compressed(
    words: jax.Array, escapes: jax.Array, base: jax.Array, width: int
) -> jax.Array:
    """Decodes one compressed tile: the definition of the format.

    Args:
      words: uint32[R, Q, WORDS[width], 128].
      escapes: uint32[R, Q, RECORD].
      base: uint8[rows].
      width: 8, 11 or 16.

    Returns:
      bf16[rows, columns].
    """
    shifted = base.astype(jnp.uint32).reshape(-1, 1, 4, 2, 8) * jnp.uint32(1 << 7 | 1 << 23)
    by_lane = jnp.repeat(shifted, 4, axis=-1)
    halves = jnp.swapaxes(by_lane, 2, 3).reshape(-1, 1, 2, window_layout.LANES)
    bias = jnp.tile(halves, (1, 1, window_layout.REGISTERS // 2, 1))
    registers = window_layout.unpack_all(words, bias, width)
    patched = jax.vmap(jax.vmap(patch))(registers, *window_records.read(escapes))
    pairs = jax.lax.bitcast_convert_type(window_layout.row_order(patched), jnp.bfloat16)
    return pairs.reshape(pairs.shape[0], -1)


def decode_tile(t: TiledMatrix, index: jax.Array) -> jax.Array:
    """Decodes (or reads, where verbatim) tile `index` (int32 scalar): bf16[rows, columns]."""
    arrays, place = t.arrays, place_of(t)

    def compressed(slot: jax.Array) -> jax.Array:
        base = arrays["base"][place.first_row + index // t.grid[1]]
        words, escapes = arrays["words"][slot], arrays["escapes"][slot]
        return decode_compressed(words, escapes, base, t.options_dict["width"])

    if not verbatim_tiles(t):
        return compressed(place.first_slot + index)
    slot = arrays["slot"][place.first_tile + index]
    return jax.lax.cond(
        slot >= 0, lambda: compressed(slot), lambda: arrays["verbatim"][-(slot + 1)]
    )


def needs_decode(t: TiledMatrix) -> jax.Array:
    """bool[T]: False for verbatim tiles."""
    if t.is_dense or not verbatim_tiles(t):
        return jnp.full(t.tiles, not t.is_dense)
    first = place_of(t).first_tile
    return jax.lax.dynamic_slice(t.arrays["slot"], (first,), (t.tiles,)) >= 0
