"""The `rans` codec: lossless, exponents entropy-coded.

A weight is a sign-and-mantissa byte and a digit that says which of 16 neighbouring exponents it
has, counted from its row's base. Weights outside are escapes, as `window_units` says: digit 0,
and the exponent in the unit's record. Units and registers are those of `window_layout`.
The two digits of a register make one *symbol*, low | high << 4, and `rans_coder` codes symbols,
by one table a matrix. A *group* is the largest of 4, 2 or 1 units that divides the units of a
tile, consecutive ones in row-major order, and its steps are its units' registers in order.

Arrays, for C compressed tiles of R x Q units, which make G groups of STEPS steps:

    words     uint32[C, R, Q, 16, 128]    as words 0..15 of `window` 8 and 11
    escapes   uint32[C, R, Q, RECORD]     one record a unit, multiples of RECORD_STEP[16]
    base      uint8[tile rows of the grid, rows of a tile]   exponent of digit 0
    states    uint32[C, G, 128]
    starts    uint32[C, G, 4]
    stream    uint16[LENGTH]              the coder's words, of tile after tile
    table     uint32[1, 2**probability_bits]

and `slot` and `verbatim` of those whose escapes would outgrow bf16, see `verbatim`. (Symbols
cannot: any of them takes at most `probability_bits` bits for two weights.)

Several matrices may share their arrays, see `window_pool`.

A matrix that this would expand (few weights, random exponents) is stored as the single array
`dense` bf16[OUT, K].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import parts, rans_coder, verbatim, window_layout, window_pool, window_records
from codecjax.codecs.aligned_bases import aligned_bases
from codecjax.codecs.window_pool import place_of
from codecjax.codecs.window_units import (
    bias_of,
    bits_of,
    choose_record,
    longest_lists,
    padded_to,
    records_of,
    registers_of,
    weights_of,
)
from codecjax.tiles import TiledMatrix, units_per_tile

VERSION = 2
# 12 bits save 0.026 bits a weight over 11 and take a table that is 8 KiB larger: fewer bytes in
# all for matrices of more than 2.5 million weights, which hold most of a model.
OPTIONS = {"probability_bits": 12}
CHOICES = {"probability_bits": rans_coder.BITS}
pooled = window_pool.pooled
needs_decode = verbatim.needs_decode

WIDTH = 16
MOST_UNITS = 4


def units_of_group(tile: tuple[int, int]) -> int:
    """4, 2 or 1: units that one group has."""
    return next(units for units in (MOST_UNITS, 2, 1) if units_per_tile(tile) % units == 0)


@functools.partial(jax.jit, static_argnames=("tile",))
def _pack(w: jax.Array, tile: tuple[int, int]) -> tuple[jax.Array, ...]:
    """Encodes all but the records and the symbols.

    Returns:
      words: uint32[T, R, Q, 16, 128].
      symbols: uint8[T, R, Q, 32, 128].
      flags: uint32[T, R, Q, 2, 128], as `window_records.write` wants them.
      base: uint8[tile rows, rows].
      longest: int32[T], escapes of the unit of each tile that has most.
      counts: int32[T, 256], how often each symbol occurs in each tile.
    """
    rows = tile[0]
    padded = padded_to(w, tile)
    tile_rows = padded.shape[0] // rows
    base = jnp.pad(aligned_bases(bits_of(w), WIDTH), (0, padded.shape[0] - w.shape[0]))
    at_once = parts.tile_rows_at_once(tile_rows, rows * padded.shape[1])

    def part(first: jax.Array | int) -> tuple[jax.Array, ...]:
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=first * rows, slice_size=at_once * rows
        )
        registers = registers_of(bits_of(cut(padded)), cut(base), w.shape[1], WIDTH, tile)
        digits = (registers >> 7) & jnp.uint32(0x000F000F)
        symbols = (digits | digits >> 12).astype(jnp.uint8)
        tiles = symbols.reshape(at_once * registers.shape[1], -1)
        number = jnp.arange(tiles.shape[0])[:, None]
        counts = jnp.zeros((tiles.shape[0], rans_coder.ALPHABET), jnp.int32)
        counts = counts.at[number, tiles].add(1).reshape(at_once, -1, rans_coder.ALPHABET)
        return (
            window_layout.stored(window_layout.pack_mantissas(registers)),
            symbols,
            window_layout.escape_flags(registers),
            counts,
        )

    by_row = parts.in_parts(part, tile_rows, at_once)
    words, symbols, flags, counts = (each.reshape(-1, *each.shape[2:]) for each in by_row)
    base = base.astype(jnp.uint8).reshape(tile_rows, rows)
    return words, symbols, flags, base, longest_lists(flags), counts


def _symbol_bytes(counts: np.ndarray) -> float:
    """Bytes that a symbol takes on average, about, if it occurs int[256] times."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) / 8


def encode(w: jax.Array, tile: tuple[int, int], probability_bits: int) -> TiledMatrix:
    """Encodes bf16[OUT, K]; every bit pattern survives."""
    shape = (w.shape[0], w.shape[1])
    options = (("probability_bits", probability_bits),)
    words, symbols, flags, base, longest_on_device, counts_on_device = _pack(w, tile)
    longest, counts = np.asarray(longest_on_device), np.asarray(counts_on_device)
    symbols_of_unit = window_layout.REGISTERS * window_layout.LANES
    unit_bytes = 2 * symbols_of_unit + symbols_of_unit * _symbol_bytes(counts.sum(axis=0))
    record, total = choose_record(longest, tile, WIDTH, unit_bytes)
    compressed = longest <= window_records.entries_that_fit(record)
    dense = TiledMatrix({"dense": w}, "rans", VERSION, shape, tile, options)
    if total >= 2 * w.size or not compressed.any():
        return dense
    frequencies = rans_coder.frequencies(counts[compressed].sum(axis=0), probability_bits)
    if not compressed.all():
        symbols = symbols[np.flatnonzero(compressed)]
    steps = window_layout.REGISTERS * units_of_group(tile)
    groups = symbols.reshape(-1, steps, window_layout.LANES)
    streams = rans_coder.encode(groups, frequencies[None], probability_bits)
    by_tile = {"words": words, "escapes": records_of(w, base, flags, tile, record)}
    arrays = {
        **verbatim.with_verbatim(by_tile, w, compressed, tile),
        "base": base,
        "states": streams.states.reshape(symbols.shape[0], -1, rans_coder.LANES),
        "starts": streams.starts.reshape(symbols.shape[0], -1, rans_coder.WARPS),
        "stream": streams.words,
        "table": jnp.asarray(rans_coder.decode_table(frequencies, probability_bits))[None],
    }
    t = TiledMatrix(arrays, "rans", VERSION, shape, tile, options)
    return t if t.nbytes < dense.nbytes else dense


def decode_compressed(
    words: jax.Array, escapes: jax.Array, base: jax.Array, symbols: jax.Array
) -> jax.Array:
    """Puts one compressed tile together.

    Args:
      words: uint32[R, Q, 16, 128].
      escapes: uint32[R, Q, RECORD].
      base: uint8[rows].
      symbols: uint8[R, Q, 32, 128].

    Returns:
      bf16[rows, columns].
    """
    pair = symbols.astype(jnp.uint32)
    digits = (pair & 0xF) << 7 | (pair >> 4) << 23
    registers = window_layout.merge_exponent(
        window_layout.unpack_mantissas(window_layout.by_lane(words)), digits + bias_of(base)
    )
    return weights_of(registers, escapes)


def decode_tile(t: TiledMatrix, index: jax.Array) -> jax.Array:
    """Decodes (or reads, where verbatim) tile `index` (int32 scalar): bf16[rows, columns]."""
    arrays, place = t.arrays, place_of(t)
    steps = window_layout.REGISTERS * units_of_group(t.tile)

    def decode_slot(slot: jax.Array) -> jax.Array:
        table = arrays["table"][place.first_table][None]

        def group(states: jax.Array, starts: jax.Array) -> jax.Array:
            return rans_coder.decode_group(states, starts, arrays["stream"], table, steps)

        symbols = jax.vmap(group)(arrays["states"][slot], arrays["starts"][slot])
        words, escapes = arrays["words"][slot], arrays["escapes"][slot]
        registers = (*words.shape[:2], window_layout.REGISTERS, window_layout.LANES)
        base = arrays["base"][place.first_row + index // t.grid[1]]
        return decode_compressed(words, escapes, base, symbols.reshape(registers))

    return verbatim.decode_or_read(t, index, decode_slot)
