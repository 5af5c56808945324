"""Entropy-coded matrices of one kernel: in arrays that they share, and one below the other.

Each CTA has groups of one matrix, as its tables are in shared memory.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from codecjax.codecs.window_pool import place_of
from codecjax.tiles import TiledMatrix

type Scalar = jax.Array | int


def share_arrays(matrices: Sequence[TiledMatrix]) -> bool:
    """Whether one kernel can have all of these matrices, none of which is dense."""
    kinds = {
        (t.codec, t.shape[1], t.tile, t.options, tuple(map(id, t.arrays.values())))
        for t in matrices
    }
    return len(kinds) == 1


@dataclasses.dataclass(frozen=True)
class CodedPlace:
    """Where the CTA's matrix is, int32 scalars.

    Attributes:
      cta: number of the CTA among the matrix's.
      groups: of the matrix.
      first_row: of the matrix, among those of all matrices.
      first_tile: of the matrix, among those of all matrices.
      pool_tile, pool_row, slot, table: `Place.first_tile`, `first_row`, `first_slot` and
        `first_table`.
    """

    cta: Scalar
    groups: Scalar
    first_row: Scalar
    first_tile: Scalar
    pool_tile: Scalar
    pool_row: Scalar
    slot: Scalar
    table: Scalar


@dataclasses.dataclass(frozen=True)
class CodedGroup:
    """A group that a warpgroup has, int32 scalars.

    Attributes:
      place: of its matrix.
      tile: number in the matrix.
      part: which of the tile's groups.
      entry: of the page table.
      slot: of the tile.
    """

    place: CodedPlace
    tile: jax.Array
    part: jax.Array
    entry: jax.Array
    slot: jax.Array


@dataclasses.dataclass(frozen=True)
class CodedStack:
    """The matrices, and how CTAs are dealt to them.

    Attributes:
      places: of each matrix; `cta` is that of its first CTA.
      rows: of whole tiles of all matrices.
      ctas: of all matrices.
    """

    places: tuple[CodedPlace, ...]
    rows: int
    ctas: int

    @classmethod
    def of(cls, matrices: Sequence[TiledMatrix], groups: int, warpgroups: int) -> "CodedStack":
        """For matrices of so many groups a tile, and CTAs of so many warpgroups."""
        places: list[CodedPlace] = []
        cta = row = tile = 0
        for t in matrices:
            place, ctas = place_of(t), -(-t.tiles * groups // warpgroups)
            places.append(
                CodedPlace(
                    cta=cta,
                    groups=t.tiles * groups,
                    first_row=row,
                    first_tile=tile,
                    pool_tile=place.first_tile,
                    pool_row=place.first_row,
                    slot=place.first_slot,
                    table=place.first_table,
                )
            )
            cta, row, tile = cta + ctas, row + t.grid[0] * t.tile[0], tile + t.tiles
        return cls(tuple(places), row, cta)

    def place(self, cta: jax.Array) -> CodedPlace:
        """Where the matrix of a CTA is, an int32 scalar."""

        def of_matrix(name: str) -> Scalar:
            first, *others = (getattr(place, name) for place in self.places)
            chosen: Scalar = first
            for place, value in zip(self.places[1:], others, strict=True):
                if value != first or chosen is not first:
                    chosen = jnp.where(cta >= place.cta, jnp.int32(value), chosen)
            return chosen

        facts = {field.name: of_matrix(field.name) for field in dataclasses.fields(CodedPlace)}
        return CodedPlace(**facts | {"cta": cta - facts["cta"]})
