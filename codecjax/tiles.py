"""Tiled matrices and the residency of their tiles: the shapes everything else speaks of.

Dimension names, used in every docstring:

    OUT, K   rows and columns of a weight, y[N, OUT] = x[N, K] @ w[OUT, K].T
    N        rows of x (batch times positions)
    T        tiles of one matrix, numbered row-major over its grid
    TILES    tiles of a whole model; a matrix owns TILES[first_tile : first_tile + T]
    U        units of one tile; a unit is 64 rows by 128 columns, the kernels' step
    P        pages of the residency pool; a page holds one decoded tile
    B, S     batch and positions; C context length
    V, D, F  vocabulary, hidden and intermediate sizes
    H, KV    query heads and key/value heads; HD head dimension; L layers
"""

import dataclasses
import math
from typing import Any

import jax

from codecjax.errors import UserError

UNIT_ROWS = 64
UNIT_COLUMNS = 128
DEFAULT_TILE = (256, 256)
DECODE = -1


def fill_entry(page: int) -> int:
    """Page-table entry that says: decode this tile and store it into `page`."""
    return -(page + 2)


def check_tile(tile: tuple[int, int]) -> tuple[int, int]:
    """Returns `tile` (rows, columns) or raises UserError if units do not fill it."""
    rows, columns = tile
    if rows < 1 or columns < 1 or rows % UNIT_ROWS or columns % UNIT_COLUMNS:
        raise UserError(
            f"tile {rows}x{columns} is not a positive multiple of {UNIT_ROWS}x{UNIT_COLUMNS}: "
            f"choose for example {DEFAULT_TILE[0]}x{DEFAULT_TILE[1]}"
        )
    return rows, columns


def units_per_tile(tile: tuple[int, int]) -> int:
    """Number of 64 x 128 units in one tile."""
    return (tile[0] // UNIT_ROWS) * (tile[1] // UNIT_COLUMNS)


def page_bytes(tile: tuple[int, int]) -> int:
    """Bytes of one page: a decoded bf16 tile."""
    return 2 * tile[0] * tile[1]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a matrix is in arrays that several matrices share.

    Attributes:
      first_tile, first_row: tiles and tile rows of the matrices before it.
      first_slot, first_verbatim: compressed and verbatim tiles of the matrices before it.
      slots: C, its own compressed tiles.
      nbytes: bytes of its own part of the arrays.
      first_table, end_table: where its tables begin and end, where the codec has tables.
      first_word, end_word: where its part of `stream` begins and ends, where the codec has one.
    """

    first_tile: int
    first_row: int
    first_slot: int
    first_verbatim: int
    slots: int
    nbytes: int
    first_table: int = 0
    first_word: int = 0
    end_word: int = 0
    end_table: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TiledMatrix:
    """One weight, stored by a codec as tiles.

    Attributes:
      arrays: the codec's arrays by name; each codec module documents their shapes.
      codec: name in `codecjax.codecs.CODECS`.
      version: version of that codec's format.
      shape: (OUT, K).
      tile: (rows, columns) of a tile, multiples of 64 and 128.
      options: the codec's static options, sorted by name.
      place: where the matrix is in `arrays`; None where they are its own alone.
    """

    arrays: dict[str, jax.Array]
    codec: str = dataclasses.field(metadata={"static": True})
    version: int = dataclasses.field(metadata={"static": True})
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})
    tile: tuple[int, int] = dataclasses.field(metadata={"static": True})
    options: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})
    place: Place | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def grid(self) -> tuple[int, int]:
        """(tile rows, tile columns), edges rounded up."""
        return (-(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1]))

    @property
    def tiles(self) -> int:
        """T, the number of tiles."""
        return math.prod(self.grid)

    @property
    def unit_grid(self) -> tuple[int, int]:
        """(unit rows, unit columns) of all tiles together."""
        (down, across), (rows, columns) = self.grid, self.tile
        return (down * rows // UNIT_ROWS, across * columns // UNIT_COLUMNS)

    @property
    def nbytes(self) -> int:
        """Bytes that the matrix's own part of the arrays holds, side lists and padding included."""
        if self.place is not None:
            return self.place.nbytes
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def bits_per_weight(self) -> float:
        """8 * nbytes / (OUT * K)."""
        return 8 * self.nbytes / math.prod(self.shape)

    @property
    def is_dense(self) -> bool:
        """True where the matrix is one row-major array, arrays["dense"] bf16[OUT, K]."""
        return "dense" in self.arrays

    @property
    def options_dict(self) -> dict[str, Any]:
        return dict(self.options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Residency:
    """Which decoded tiles are in device memory, for all matrices of a model.

    Attributes:
      pages: bf16[P, rows, columns], or None where no tile is ever resident.
      page_table: int32[TILES]. p >= 0: page p holds the tile; -1: decode it;
        -(p + 2): decode it and store it into page p.
      decoded: int32[TILES, U], written by the kernels: 1 where a unit was decoded at the
        last use of its matrix, 0 where its page was read.
    """

    pages: jax.Array | None
    page_table: jax.Array
    decoded: jax.Array
