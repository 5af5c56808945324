"""The `window` codec: lossless, fixed length, decoded without branches.

A weight is a sign-and-mantissa byte and a digit that says which of `width` neighbouring
exponents it has, counted from its row's base (the window that covers most of the row). A
weight outside the window is an *escape*: its exponent stands on its unit's escape list, with
the lane, register and half that hold the weight, and a round that numbers the escapes of one
lane. Bits are laid out as `window_layout` says.

Arrays, for C compressed and V verbatim tiles (C + V = T), tiles of R x Q units:

    words     uint32[C, R, Q, WORDS[width], 128]
    escapes   uint32[C, R, Q, capacity]   exponent << 24 | round << 16 | 1 << 15 | lane << 6
                                          | register << 1 | half; unused entries are 0
    base      uint8[tile rows of the grid, rows of a tile]   exponent of digit 0

and, only where V > 0 (else tile t is compressed tile t):

    slot      int32[T]    s >= 0: compressed tile s; s < 0: verbatim tile -(s + 1)
    verbatim  bf16[V, rows, columns]      tiles whose escapes would outgrow bf16

Several matrices may share their arrays, see `window_pool`.

A matrix that this would expand (few rows, random exponents) is stored as the single array
`dense` bf16[OUT, K].
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import window_layout, window_pool
from codecjax.codecs.window_pool import place_of, tile_escapes, verbatim_tiles
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, TiledMatrix, page_bytes, units_per_tile

VERSION = 2
OPTIONS = {"width": 11}
CHOICES = {"width": tuple(window_layout.WORDS)}
pooled = window_pool.pooled

EXPONENT_SHIFT = 24
ROUND_SHIFT = 16
VALID = 1 << 15
LANE_SHIFT = 6
REGISTER_SHIFT = 1
# Escapes of one lane that a kernel has room for; a tile with more is stored verbatim.
MAX_ROUNDS = 8
# Matrices of one shape differ a little in their longest list. Kernels are compiled for one
# capacity, so few different ones are wanted: capacities are multiples of what hardly any unit
# of Gaussian rows exceeds (width 8 has 107 escapes a unit in the mean, 11 has 16, 16 has 0.5).
CAPACITY_STEP = {8: 40, 11: 40, 16: 8}


def _exponent(bits: jax.Array) -> jax.Array:
    return (bits >> 7) & 0xFF


def _blocks(w: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """bf16[OUT, K] -> int32 bit patterns [grid rows, rows, padded K], padded with -1."""
    out, k = w.shape
    rows, columns = tile
    bits = jax.lax.bitcast_convert_type(w, jnp.uint16).astype(jnp.int32)
    padded = jnp.pad(bits, ((0, -out % rows), (0, -k % columns)), constant_values=-1)
    return padded.reshape(-1, rows, padded.shape[1])


def _digits(bits: jax.Array, base: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Digits of int32[rows, columns] and which weights escape; padding has digit 0."""
    digit = _exponent(bits) - base[:, None]
    padding = bits < 0
    escaped = ((digit < 0) | (digit >= width)) & ~padding
    return jnp.where(escaped | padding, 0, digit), escaped


def _row_bases(bits: jax.Array, width: int) -> jax.Array:
    """int32[rows]: first exponent of the window that covers most of each row."""

    def histogram(row: jax.Array) -> jax.Array:
        bins = jnp.where(row < 0, 256, _exponent(row))
        return jnp.zeros(257, jnp.int32).at[bins].add(1)[:256]

    total = jnp.cumsum(jax.vmap(histogram)(bits), axis=1)
    total = jnp.pad(total, ((0, 0), (1, 0)))
    return jnp.argmax(total[:, width:] - total[:, :-width], axis=1).astype(jnp.int32)


def _tile_maximum(units: jax.Array, across: int) -> jax.Array:
    """[units down, units across] of one tile row -> the maximum in each tile."""
    return units.reshape(units.shape[0], -1, across).max(axis=(0, 2))


@functools.partial(jax.jit, static_argnames=("tile", "width"))
def _survey(
    w: jax.Array, tile: tuple[int, int], width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Row bases uint8[grid rows, rows]; longest list and most rounds of each tile, int32[T]."""
    across = tile[1] // UNIT_COLUMNS

    def tile_row(bits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        base = _row_bases(bits, width)
        _, escaped = _digits(bits, base, width)
        of_lane = window_layout.fragment_order(escaped).sum(axis=(2, 4))
        longest = _tile_maximum(of_lane.sum(axis=-1), across)
        rounds = _tile_maximum(of_lane.max(axis=-1), across)
        return base.astype(jnp.uint8), longest, rounds

    base, longest, rounds = jax.lax.map(tile_row, _blocks(w, tile))
    return base, longest.reshape(-1), rounds.reshape(-1)


def _compact(exponents: jax.Array, escaped: jax.Array, capacity: int) -> jax.Array:
    """Escape lists uint32[units down, units across, capacity] of fragments [..., 32, 128, 2]."""
    rounds = jnp.cumsum(jnp.swapaxes(escaped, 2, 3).reshape(*escaped.shape[:2], 128, 64), axis=-1)
    rounds = jnp.swapaxes(rounds.reshape(*escaped.shape[:2], 128, 32, 2), 2, 3) - 1
    position = jnp.arange(escaped[0, 0].size, dtype=jnp.uint32).reshape(escaped.shape[2:])
    register, lane, half = position >> 8, (position >> 1) & 127, position & 1
    place = (lane << LANE_SHIFT) | (register << REGISTER_SHIFT) | half | jnp.uint32(VALID)
    entries = (exponents << EXPONENT_SHIFT) | (rounds.astype(jnp.uint32) << ROUND_SHIFT) | place
    flat = (*escaped.shape[:2], position.size)
    rank = jnp.cumsum(escaped.reshape(flat), axis=-1) - 1
    rank = jnp.where(escaped.reshape(flat), rank, capacity)

    def scatter(rank: jax.Array, entry: jax.Array) -> jax.Array:
        return jnp.zeros(capacity, jnp.uint32).at[rank].set(entry, mode="drop")

    return jax.vmap(jax.vmap(scatter))(rank, entries.reshape(flat))


@functools.partial(jax.jit, static_argnames=("tile", "width", "capacity"))
def _pack(
    w: jax.Array, base: jax.Array, tile: tuple[int, int], width: int, capacity: int
) -> tuple[jax.Array, jax.Array]:
    """Words and escape lists of every tile, [T, R, Q, ...]."""
    down, across = tile[0] // UNIT_ROWS, tile[1] // UNIT_COLUMNS

    def tile_row(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        bits, row_base = block
        digits, escaped = _digits(bits, row_base.astype(jnp.int32), width)
        sign_mantissa = jnp.where(bits < 0, 0, ((bits >> 8) & 0x80) | (bits & 0x7F))
        words = window_layout.pack(
            window_layout.fragment_order(sign_mantissa.astype(jnp.uint32)),
            window_layout.fragment_order(digits.astype(jnp.uint32)),
            width,
        )
        escapes = _compact(
            window_layout.fragment_order(_exponent(bits).astype(jnp.uint32)),
            window_layout.fragment_order(escaped),
            capacity,
        )
        return words, escapes

    words, escapes = jax.lax.map(tile_row, (_blocks(w, tile), base))

    def by_tile(units: jax.Array) -> jax.Array:
        grid_rows, _, units_across = units.shape[:3]
        tiles_across = units_across // across
        split = units.reshape(grid_rows, down, tiles_across, across, *units.shape[3:])
        return jnp.swapaxes(split, 1, 2).reshape(-1, down, across, *units.shape[3:])

    return by_tile(words), by_tile(escapes)


def _tile_bytes(capacity: int, tile: tuple[int, int], width: int) -> int:
    return units_per_tile(tile) * 4 * (window_layout.WORDS[width] * window_layout.LANES + capacity)


def _choose_capacity(longest: np.ndarray, tile: tuple[int, int], width: int) -> tuple[int, int]:
    """Escape capacity with the fewest bytes in all, and those bytes.

    Tiles whose longest list exceeds the capacity are stored verbatim.
    """
    step = CAPACITY_STEP[width]
    steps = -(-longest // step) * step
    best = (0, math.inf)
    for capacity in np.unique(np.maximum(steps, step)):
        compressed = int(np.sum(longest <= capacity))
        total = compressed * _tile_bytes(int(capacity), tile, width)
        total += (longest.size - compressed) * page_bytes(tile)
        if total < best[1]:
            best = (int(capacity), total)
    return int(best[0]), int(best[1])


def encode(w: jax.Array, tile: tuple[int, int], width: int) -> TiledMatrix:
    """Encodes bf16[OUT, K]; every bit pattern survives."""
    shape = (w.shape[0], w.shape[1])
    options = (("width", width),)
    base, longest_on_device, rounds = _survey(w, tile, width)
    too_many = np.asarray(rounds) > MAX_ROUNDS
    longest = np.where(too_many, UNIT_ROWS * UNIT_COLUMNS, np.asarray(longest_on_device))
    capacity, total = _choose_capacity(longest, tile, width)
    compressed = longest <= capacity
    if total + base.size >= 2 * w.size or not compressed.any():
        return TiledMatrix({"dense": w}, "window", VERSION, shape, tile, options)
    words, escapes = _pack(w, base, tile, width, capacity)
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


def _patch(fragments: jax.Array, escapes: jax.Array) -> jax.Array:
    """Puts the exponents of a list [capacity] into a unit's bit patterns uint16[32, 128, 2]."""
    flat = fragments.reshape(-1)
    register, lane = (escapes >> REGISTER_SHIFT) & 31, (escapes >> LANE_SHIFT) & 127
    target = jnp.where((escapes & VALID) != 0, register * 256 + lane * 2 + (escapes & 1), flat.size)
    exponent = (escapes >> EXPONENT_SHIFT << 7).astype(jnp.uint16)
    value = (flat.at[target].get(mode="clip") & jnp.uint16(0x807F)) | exponent
    return flat.at[target].set(value, mode="drop").reshape(fragments.shape)


def decode_compressed(
    words: jax.Array, escapes: jax.Array, base: jax.Array, width: int
) -> jax.Array:
    """Decodes one compressed tile: the definition of the format.

    Args:
      words: uint32[R, Q, WORDS[width], 128].
      escapes: uint32[R, Q, capacity].
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
    both = jax.lax.bitcast_convert_type(registers, jnp.uint16)
    patched = jax.vmap(jax.vmap(_patch))(both, escapes)
    return jax.lax.bitcast_convert_type(window_layout.row_order(patched), jnp.bfloat16)


def decode_tile(t: TiledMatrix, index: jax.Array) -> jax.Array:
    """Decodes (or reads, where verbatim) tile `index` (int32 scalar): bf16[rows, columns]."""
    arrays, place = t.arrays, place_of(t)

    def compressed(slot: jax.Array) -> jax.Array:
        base = arrays["base"][place.first_row + index // t.grid[1]]
        words, escapes = arrays["words"][slot], tile_escapes(t, slot)
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
