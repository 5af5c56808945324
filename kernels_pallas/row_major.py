"""What lanes have of units in row-major weights, and how they load and store it.

Four neighbouring lanes have the same rows of a unit. Register by register, two weights a lane, a
unit would be 32 accesses of 16 bytes of each row; so each lane accesses 8 neighbouring weights at
a time, of all four, and words are transposed among the four.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from codecjax.codecs import window_layout
from codecjax.codecs.window_layout import REGISTERS
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS
from kernels_pallas.warps import Warps

# Words that a lane accesses at a time.
VECTOR = 4
# Registers among the transposed words, which are by group of 32 columns, half and 8 columns.
ORDER = tuple(8 * (j // 8) + 4 * (j % 2) + j % 8 // 2 for j in range(REGISTERS))
UNORDERED = tuple(ORDER.index(place) for place in range(REGISTERS))


def place_in_rows(
    lane: jax.Array, row: jax.Array, unit: jax.Array, columns: int
) -> tuple[jax.Array, list[int]]:
    """Where row-major weights have what becomes a lane's registers once it is transposed.

    Args:
      lane: uint32[128], which of its unit's lanes each lane is.
      row, unit: uint32[128], the unit's first row and its column of units.
      columns: of all weights.

    Returns:
      uint32[128], the word of the lane's first access; and all accesses' offsets from it.
    """
    pairs = columns // 2
    index = (row + window_layout.row_of(lane, jnp.uint32(0))) * jnp.uint32(pairs)
    index += unit * jnp.uint32(UNIT_COLUMNS // 2) + lane % jnp.uint32(4) * jnp.uint32(VECTOR)
    return index, [8 * pairs * half + 4 * VECTOR * group for group in range(4) for half in range(2)]


def _of_unit(
    warps: Warps, ref: Any, page: jax.Array | None, row: jax.Array, column: jax.Array
) -> tuple[jax.Array, list[int]]:
    if page is not None:
        row = page * ref.shape[1] + row
    same = jnp.uint32(0) * warps.index()
    index, offsets = place_in_rows(
        warps.index(), row.astype(jnp.uint32) + same, same, ref.shape[-1]
    )
    return index + (column // 2).astype(jnp.uint32), offsets


def load_unit(
    warps: Warps, ref: Any, page: jax.Array, row: jax.Array, column: jax.Array
) -> list[jax.Array]:
    """A warpgroup's 32 registers of a unit of bf16 ref [P, rows, columns], at int32 scalars."""
    index, offsets = _of_unit(warps, ref, page, row, column)
    words = warps.transpose(warps.load(ref, index, offsets, VECTOR))
    return [words[place] for place in ORDER]


def store_columns(
    warps: Warps,
    ref: Any,
    page: jax.Array | None,
    row: jax.Array,
    column: jax.Array,
    registers: list[jax.Array],
) -> None:
    """Stores a warpgroup's registers as columns of a unit of bf16 ref [rows, columns] or [P, ...].

    Args:
      warps: operations on lanes.
      ref: in device memory.
      page: int32 scalar, or None where the ref has no pages.
      row, column: int32 scalars, of the first weight; the column a multiple of 32.
      registers: uint32[128] each, 8 for each 32 columns.
    """
    if warps.interpret:
        both = jax.lax.bitcast_convert_type(jnp.stack(registers), jnp.bfloat16)
        place = (pl.ds(row, UNIT_ROWS), pl.ds(column, 4 * len(registers)))
        ref[place if page is None else (page, *place)] = window_layout.row_order(both[None, None])
        return
    # Units seldom fill pages: that must not take registers where they are decoded.
    warps = dataclasses.replace(warps, anew=page is not None)
    index, offsets = _of_unit(warps, ref, page, row, column)
    words = [registers[place] for place in UNORDERED[: len(registers)]]
    everywhere = jnp.uint32(1) + jnp.uint32(0) * index
    warps.store(ref, index, offsets[: len(registers) // VECTOR], words, everywhere, transposed=True)
