"""The `window` codec: lossless, fixed length, decoded without branches.

A weight is a sign-and-mantissa byte and a digit that says which of `width` neighbouring
exponents it has, counted from its row's base (the window that covers most of the row). A
weight outside the window is an *escape*: its digit is 0 and its exponent stands in its unit's
escape *record*. Bits are laid out as `window_layout` and `window_records` say.

Arrays, for C compressed and V verbatim tiles (C + V = T), tiles of R x Q units:

    words     uint32[C, R, Q, WORDS[width], 128]
    escapes   uint32[C, R, Q, RECORD]     one record a unit, multiples of RECORD_STEP[width]
    base      uint8[tile rows of the grid, rows of a tile]   exponent of digit 0

and `slot` and `verbatim` of those whose escapes would outgrow bf16, see `verbatim`. A matrix of
which rows are looked up also has `lane_escapes`, see `window_lists`.

Several matrices may share their arrays, see `window_pool`.

A matrix that this would expand (few rows, random exponents) is stored as the single array
`dense` bf16[OUT, K].
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import parts, verbatim, window_layout, window_pool, window_records
from codecjax.codecs.intervals import Interval
from codecjax.codecs.window_bases import row_bases
from codecjax.codecs.window_pool import place_of
from codecjax.codecs.window_units import (
    bias_of,
    bits_of,
    choose_record,
    longest_lists,
    padded_to,
    patch,
    records_of,
    registers_of,
    weights_of,
)
from codecjax.errors import UserError
from codecjax.tiles import TiledMatrix

VERSION = 4
# The width with the fewest bits, which a matrix has that would exceed `most_bits` with its own.
NARROWEST = 8
# `most_bits` a weight, everything included, are those of a matrix that is encoded alone and of all
# projections of a model together; with 0 there is no such bound.
OPTIONS = {"width": 11, "most_bits": 0.0}
CHOICES = {"width": tuple(window_layout.WORDS), "most_bits": Interval(0.0, 16.0)}
needs_decode = verbatim.needs_decode


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
    rows = tile[0]
    padded = padded_to(w, tile)
    tile_rows = padded.shape[0] // rows
    at_once = parts.tile_rows_at_once(tile_rows, rows * padded.shape[1])

    def part(first: jax.Array | int) -> tuple[jax.Array, ...]:
        bits = bits_of(jax.lax.dynamic_slice_in_dim(padded, first * rows, at_once * rows))
        base = row_bases(bits, w.shape[1], width)
        registers = registers_of(bits, base, w.shape[1], width, tile)
        words = window_layout.stored(window_layout.pack(registers, width))
        flags = window_layout.escape_flags(registers)
        return words, flags, base.astype(jnp.uint8).reshape(at_once, rows)

    words, flags, base = parts.in_parts(part, tile_rows, at_once)
    words, flags = (array.reshape(-1, *array.shape[2:]) for array in (words, flags))
    return words, flags, base, longest_lists(flags)


def encode(w: jax.Array, tile: tuple[int, int], width: int, most_bits: float) -> TiledMatrix:
    """Encodes bf16[OUT, K]; every bit pattern survives.

    Raises:
      UserError: that takes more than `most_bits`, above 0, with width NARROWEST too.
    """
    for each in dict.fromkeys((width, NARROWEST)):
        t = _encode(w, tile, each)
        if not most_bits or t.bits_per_weight <= most_bits:
            return t
    raise unmet(t.bits_per_weight, most_bits, f"a matrix of {w.shape[0]}x{w.shape[1]}")


def unmet(bits: float, most_bits: float, what: str) -> UserError:
    """What to say where the bits a weight exceed `most_bits`."""
    enough = math.ceil(1000 * bits) / 1000
    return UserError(
        f"codec 'window' needs {enough:g} bits a weight for {what} with width {NARROWEST}, padding "
        f"included, which exceeds most_bits {most_bits:g}: raise that, or choose codec 'rans'"
    )


def _encode(w: jax.Array, tile: tuple[int, int], width: int) -> TiledMatrix:
    shape = (w.shape[0], w.shape[1])
    options = (("width", width),)
    words, flags, base, longest_on_device = _pack(w, tile, width)
    longest = np.asarray(longest_on_device)
    word_bytes = 4 * window_layout.WORDS[width] * window_layout.LANES
    record, total = choose_record(longest, tile, width, word_bytes)
    compressed = longest <= window_records.entries_that_fit(record)
    if total + base.size >= 2 * w.size or not compressed.any():
        return TiledMatrix({"dense": w}, "window", VERSION, shape, tile, options)
    by_tile = {"words": words, "escapes": records_of(w, base, flags, tile, record)}
    arrays = {**verbatim.with_verbatim(by_tile, w, compressed, tile), "base": base}
    return TiledMatrix(arrays, "window", VERSION, shape, tile, options)


def pooled(matrices: Sequence[TiledMatrix]) -> tuple[TiledMatrix, ...]:
    """As `window_pool.pooled`, a pool for each width."""
    result = list(matrices)
    for options in dict.fromkeys(t.options for t in matrices):
        alike = [place for place, t in enumerate(matrices) if t.options == options]
        shared = window_pool.pooled([matrices[place] for place in alike])
        for place, t in zip(alike, shared, strict=True):
            result[place] = t
    return tuple(result)


def decode_compressed(
    words: jax.Array, escapes: jax.Array, base: jax.Array, width: int
) -> jax.Array:
    """Decodes one compressed tile: the definition of the format.

    Args:
      words: uint32[R, Q, WORDS[width], 128], as they are stored.
      escapes: uint32[R, Q, RECORD].
      base: uint8[rows].
      width: 8, 11 or 16.

    Returns:
      bf16[rows, columns].
    """
    registers = window_layout.unpack_all(window_layout.by_lane(words), bias_of(base), width)
    return weights_of(registers, escapes)


def decode_tile(t: TiledMatrix, index: jax.Array) -> jax.Array:
    """Decodes (or reads, where verbatim) tile `index` (int32 scalar): bf16[rows, columns]."""

    def decode_slot(slot: jax.Array) -> jax.Array:
        base = t.arrays["base"][place_of(t).first_row + index // t.grid[1]]
        words, escapes = t.arrays["words"][slot], t.arrays["escapes"][slot]
        return decode_compressed(words, escapes, base, t.options_dict["width"])

    return verbatim.decode_or_read(t, index, decode_slot)


__all__ = [
    "CHOICES",
    "NARROWEST",
    "OPTIONS",
    "VERSION",
    "decode_compressed",
    "decode_tile",
    "encode",
    "needs_decode",
    "patch",
    "pooled",
    "unmet",
]
