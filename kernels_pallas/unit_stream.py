"""The matrices of a kernel: what is static about them, their arrays, and shared memory for units.

A kernel may have several matrices with the same K, one below the other, whose arrays may be the
same. What it does with them is `unit_walk`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window_layout
from codecjax.codecs.window_pool import place_of, verbatim_tiles
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, Place, Residency, TiledMatrix
from kernels_pallas.lanes import LANES, SWIZZLE_TRANSFORMS, Lanes

# Tiles that a walk along K may visit: each lane looks up where one of them is.
MAX_TILES_ACROSS = LANES
# What is copied to shared memory has a multiple of so many words.
COPIED_WORDS = 32


@dataclasses.dataclass(frozen=True)
class Part:
    """Static facts of one of a kernel's matrices.

    Attributes:
      source: which of the kernel's sets of arrays it is in.
      first_row: its first unit row among those of all of the kernel's matrices.
      first_tile: its first tile among those of all of the kernel's matrices.
      tiles: T.
      verbatim: whether some tiles are verbatim.
      place: where it is in its arrays; None for a dense matrix.
    """

    source: int
    first_row: int
    first_tile: int
    tiles: int
    verbatim: bool
    place: Place | None


@dataclasses.dataclass(frozen=True)
class UnitStream:
    """Static facts of a kernel's matrices; `operands` gives the arrays to match.

    Attributes:
      parts: the matrices, from the top down.
      units_down, units_across: units of all matrices together.
      tile: rows and columns of a tile.
      width: the window codec's width; None for dense matrices.
      record: words of an escape record; None for dense matrices.
      counted: whether decoded units are recorded.
      paged: whether tiles may be resident.
      stages: buffers in flight.
      lanes: lane operations.
    """

    parts: tuple[Part, ...]
    units_down: int
    units_across: int
    tile: tuple[int, int]
    width: int | None
    record: int | None
    counted: bool
    paged: bool
    stages: int
    lanes: Lanes

    @staticmethod
    def fit_together(matrices: Sequence[TiledMatrix]) -> bool:
        """Whether one kernel can have all of these matrices."""
        kinds = {
            (t.shape[1], t.tile, t.options, None if t.is_dense else t.arrays["escapes"].shape[-1])
            for t in matrices
        }
        return len(kinds) == 1

    @classmethod
    def of(
        cls,
        matrices: Sequence[TiledMatrix],
        residency: Residency | None,
        stages: int,
        lanes: Lanes,
        overlaid: bool = False,
    ) -> tuple["UnitStream", tuple[dict[str, jax.Array], ...]]:
        """The stream of matrices that fit together, and the sets of arrays that they are in.

        Args:
          matrices, residency: as in `kernels_pallas.matmul_all`.
          stages, lanes: see the attributes.
          overlaid: whether resident tiles of dense matrices are read from their pages.
        """
        parts: list[Part] = []
        sources: list[dict[str, jax.Array]] = []
        row = tile = 0
        for t in matrices:
            known = (index for index, arrays in enumerate(sources) if _same(arrays, t.arrays))
            source = next(known, len(sources))
            if source == len(sources):
                sources.append(t.arrays)
            place = None if t.is_dense else place_of(t)
            verbatim = not t.is_dense and verbatim_tiles(t) > 0
            parts.append(Part(source, row, tile, t.tiles, verbatim, place))
            row += t.unit_grid[0]
            tile += t.tiles
        first = matrices[0]
        counted = not first.is_dense and residency is not None
        stream = cls(
            parts=tuple(parts),
            units_down=row,
            units_across=first.unit_grid[1],
            tile=first.tile,
            width=None if first.is_dense else first.options_dict["width"],
            record=None if first.is_dense else first.arrays["escapes"].shape[-1],
            counted=counted,
            paged=(counted or overlaid) and residency is not None and residency.pages is not None,
            stages=stages,
            lanes=lanes,
        )
        return stream, tuple(sources)

    @property
    def verbatim(self) -> bool:
        """Whether some tiles of some matrix are verbatim."""
        return any(part.verbatim for part in self.parts)

    @property
    def tiles_across(self) -> int:
        return self.units_across * UNIT_COLUMNS // self.tile[1]

    @property
    def buffered(self) -> bool:
        """Whether units may come from pages or verbatim tiles."""
        return self.paged or self.verbatim

    @property
    def copied_record(self) -> int:
        """Words that are copied of an escape record and, to make up the number, after it.

        The copy engine takes what is beyond an array for 0; the interpreter would not.
        """
        assert self.record is not None
        if self.lanes.interpret:
            return self.record
        return -(-self.record // COPIED_WORDS) * COPIED_WORDS

    def operands(
        self,
        sources: Sequence[dict[str, jax.Array]],
        residency: Residency | None,
        first_tile: jax.Array,
    ) -> dict[str, Any]:
        """The kernel's arrays by name; `pages` and `decoded` as refs that it may write.

        Args:
          sources: as `of` gives them; the arrays of the first have names like "words.0".
          residency, first_tile: of the matrices.
        """
        arrays: dict[str, Any] = {}
        for index, source in enumerate(sources):
            if "dense" in source:
                pad = [
                    (0, -size % unit)
                    for size, unit in zip(source["dense"].shape, self.tile, strict=True)
                ]
                arrays[f"dense.{index}"] = jnp.pad(source["dense"], pad)
                continue
            verbatim = any(part.verbatim for part in self.parts if part.source == index)
            names = ("words", "escapes", "base", *(("slot", "verbatim") if verbatim else ()))
            arrays |= {f"{name}.{index}": source[name] for name in names}
            arrays[f"escapes.{index}"] = source["escapes"].reshape(-1)
        if self.counted or self.paged:
            assert residency is not None
            arrays["first_tile"] = first_tile.reshape(1)
            if self.counted:
                arrays["decoded"] = jax.new_ref(residency.decoded)
            if self.paged:
                arrays["page_table"] = residency.page_table
                # Nothing is decoded of dense matrices, so nothing goes into pages.
                arrays["pages"] = jax.new_ref(residency.pages) if self.counted else residency.pages
        return arrays

    def residency(self, before: Residency | None, operands: dict[str, Any]) -> Residency | None:
        """The residency after the kernel has run on `operands`."""
        if before is None or not self.counted:
            return before
        pages = jax.freeze(operands["pages"]) if self.paged else before.pages
        return Residency(pages, before.page_table, jax.freeze(operands["decoded"]))

    def scratch(self, staged: bool, walks: tuple[int, ...] = ()) -> dict[str, Any]:
        """Shared memory: units, words and records in flight, and where each tile is.

        Args:
          staged: whether the kernel puts decoded units into shared memory too.
          walks: shape of the walks that a CTA makes at once, each with its own.
        """
        scratch = {}
        if staged or self.width is None or self.buffered or self.lanes.interpret:
            unit = (*walks, self.stages, UNIT_ROWS, UNIT_COLUMNS)
            scratch["units"] = plgpu.SMEM(unit, jnp.bfloat16, transforms=SWIZZLE_TRANSFORMS)
        if self.width is not None:
            words = (*walks, self.stages, window_layout.WORDS[self.width], LANES)
            scratch["words_in_flight"] = plgpu.SMEM(words, jnp.uint32)
            records = (*walks, self.stages, self.copied_record)
            scratch["records_in_flight"] = plgpu.SMEM(records, jnp.uint32)
        if self.paged:
            scratch["entries"] = plgpu.SMEM((*walks, LANES), jnp.uint32)
        if self.verbatim:
            scratch["slots"] = plgpu.SMEM((*walks, LANES), jnp.uint32)
        return scratch


def _same(one: dict[str, jax.Array], other: dict[str, jax.Array]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)
