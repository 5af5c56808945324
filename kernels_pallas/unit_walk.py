"""How both kernels get the units of matrices into shared memory, decoded.

A CTA (one warpgroup) walks along K through one row of 64 x 128 units of one matrix. For each unit
it looks up where the tile is: in a page, verbatim, or compressed. Pages and verbatim tiles are
copied into the unit's buffer as they are. Compressed words and escape records are copied to
buffers of their own; words are decoded in registers, which each lane then patches with its
escapes. Whatever the source, the same bits end in the same registers, so what follows cannot
tell.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window_layout
from codecjax.tiles import DECODE, UNIT_COLUMNS, UNIT_ROWS
from kernels_pallas.lanes import LANE_LAYOUT
from kernels_pallas.unit_stream import UnitStream


def row_bias(
    base_of: Callable[[jax.Array], jax.Array], row: jax.Array, lane: jax.Array
) -> tuple[jax.Array, ...]:
    """Row bases of lanes of a unit, as `window_layout.unpack` wants them.

    Args:
      base_of: the bases of rows uint32[128].
      row: int32 scalar, the unit's first row.
      lane: uint32[128], which of the unit's lanes each lane is.
    """
    matrix_row = row.astype(jnp.uint32) + (lane >> 5) * 16 + ((lane >> 2) & 7)
    spread = jnp.uint32(1 << 7 | 1 << 23)
    return tuple(base_of(matrix_row + jnp.uint32(8 * half)) * spread for half in range(2))


@dataclasses.dataclass(frozen=True)
class UnitWalk:
    """A CTA's walk along one row of units, inside a kernel.

    Attributes:
      stream: the matrices.
      refs: operands and scratch by name.
      part: place of the CTA's matrix among them.
      row: unit row in that matrix.
      first_unit: unit column where the walk starts.
      bias: row bases of the lane's two rows, as `window_layout.unpack` wants them.
    """

    stream: UnitStream
    refs: dict[str, Any]
    part: jax.Array
    row: jax.Array
    first_unit: jax.Array
    bias: tuple[jax.Array, ...]

    @classmethod
    def start(
        cls,
        stream: UnitStream,
        refs: dict[str, Any],
        row: jax.Array,
        first_unit: jax.Array,
    ) -> "UnitWalk":
        """Looks up what `fetch` must know; `prepare` does the rest while copies are under way.

        Args:
          stream, refs, first_unit: see the attributes.
          row: unit row among those of all matrices.
        """
        part = jnp.int32(0)
        for other in stream.parts[1:]:
            part += (row >= other.first_row).astype(jnp.int32)
        walk = cls(stream, refs, part, row, first_unit, ())
        walk = dataclasses.replace(walk, row=row - walk.of_part("first_row"))
        if stream.buffered:
            lanes = stream.lanes
            down, across = stream.tile[0] // UNIT_ROWS, stream.tile[1] // UNIT_COLUMNS
            first = walk.row // down * stream.tiles_across + first_unit // across
            last = (walk.of_part("tiles") - 1).astype(jnp.uint32)
            index = jnp.minimum(first.astype(jnp.uint32) + lanes.index(), last)
            if stream.verbatim:
                refs["slots"][...] = walk._slots(index)
            if stream.paged:
                offset = (refs["first_tile"][0] + walk.of_part("first_tile")).astype(jnp.uint32)
                refs["entries"][...] = lanes.gather(refs["page_table"], index + offset)
            plgpu.commit_smem()
        return walk

    def of_part(self, name: str) -> jax.Array:
        """An int32 scalar: that static fact of the CTA's matrix."""
        return self._select([getattr(part, name) for part in self.stream.parts])

    def of_place(self, name: str) -> jax.Array:
        """An int32 scalar: that static fact of where the CTA's matrix is in its arrays."""
        return self._select([getattr(part.place, name) for part in self.stream.parts])

    def _select(self, values: Sequence[int]) -> jax.Array:
        """An int32 scalar: the value for the CTA's matrix."""
        value = jnp.int32(values[0])
        for index, other in enumerate(values[1:], start=1):
            if other != values[0]:
                value = jnp.where(self.part == index, jnp.int32(other), value)
        return value

    @property
    def _sources(self) -> int:
        return 1 + max(part.source for part in self.stream.parts)

    def per_source(self, run: Callable[[int], None]) -> None:
        """Runs `run` for the arrays of the CTA's matrix."""
        if self._sources == 1:
            run(0)
            return
        for index in range(self._sources):
            pl.when(self.of_part("source") == index)(functools.partial(run, index))

    def _gather(self, name: str, index: jax.Array) -> jax.Array:
        """`Lanes.gather` from that array of the CTA's matrix."""
        lanes = self.stream.lanes
        (values,) = self.choose(
            lambda source: (lanes.gather(self.refs[f"{name}.{source}"], index),)
        )
        return values

    def _slots(self, index: jax.Array) -> jax.Array:
        """Each lane's slot of tile `index`, as uint32."""
        in_order = index + self.of_place("first_slot").astype(jnp.uint32)
        index += self.of_place("first_tile").astype(jnp.uint32)

        def slots(source: int) -> tuple[jax.Array]:
            name = f"slot.{source}"
            if name not in self.refs:
                return (in_order,)
            found = self.stream.lanes.gather(self.refs[name], index)
            compressed = self.refs[f"words.{source}"].shape[0]
            verbatim = self.refs[f"verbatim.{source}"].shape[0]
            # A damaged slot must not lead beyond the arrays. Negative ones are large here.
            last, first = jnp.uint32(compressed - 1), jnp.uint32(2**32 - verbatim)
            inside = jnp.where(
                found < jnp.uint32(2**31), jnp.minimum(found, last), jnp.maximum(found, first)
            )
            return (inside,)

        (values,) = self.choose(slots)
        return values

    def choose(
        self, make: Callable[[int], Sequence[jax.Array]], first: int = 0
    ) -> tuple[jax.Array, ...]:
        """Words a lane: what `make` makes of the arrays, by number, of the CTA's matrix."""

        def made() -> tuple[jax.Array, ...]:
            return tuple(plgpu.layout_cast(each, LANE_LAYOUT) for each in make(first))

        if first == self._sources - 1:
            return made()
        here = self.of_part("source") == first
        return jax.lax.cond(here, made, lambda: self.choose(make, first + 1))

    def prepare(self) -> "UnitWalk":
        """The walk with its row bases."""
        if self.stream.width is None:
            return self
        return dataclasses.replace(self, bias=self.row_bias(self.stream.lanes.index()))

    def row_bias(self, lane: jax.Array) -> tuple[jax.Array, ...]:
        """Row bases, as `window_layout.unpack` wants them, of lanes of the walk's units."""
        row = self.row * UNIT_ROWS + self.of_place("first_row") * self.stream.tile[0]
        return row_bias(lambda index: self._gather("base", index), row, lane)

    def where(self, step: jax.Array) -> dict[str, jax.Array]:
        """Tile, place in the tile, page-table entry and slot of the step's unit."""
        stream = self.stream
        down, across = stream.tile[0] // UNIT_ROWS, stream.tile[1] // UNIT_COLUMNS
        unit = self.first_unit + step
        tile = self.row // down * stream.tiles_across + unit // across
        nth = unit // across - self.first_unit // across
        entry = jnp.int32(DECODE)
        if stream.paged:
            entry = self.refs["entries"][nth].astype(jnp.int32)
        slot = tile
        if stream.verbatim:
            slot = self.refs["slots"][nth].astype(jnp.int32)
        elif stream.width is not None:
            slot = tile + self.of_place("first_slot")
        return {
            "unit": unit,
            "tile": tile,
            "down": self.row % down,
            "across": unit % across,
            "entry": entry,
            "slot": slot,
        }

    def _decoding(self, where: dict[str, jax.Array]) -> jax.Array:
        """Whether the unit is compressed and not resident."""
        return (where["entry"] < 0) & (where["slot"] >= 0)

    def _when_decoding(self, where: dict[str, jax.Array]) -> Any:
        """Decorator: run where the unit is compressed and not resident."""
        return pl.when(self._decoding(where)) if self.stream.buffered else lambda body: body()

    @staticmethod
    def arrivals(stream: UnitStream) -> int:
        """How often `fetch` arrives at the barrier."""
        return 1 if stream.width is None else 2

    def fetch(self, step: jax.Array, stage: jax.Array, barrier: Any) -> None:
        """Starts the copy of a step's unit into the buffers of `stage`; `arrivals` arrivals."""
        stream, refs, where = self.stream, self.refs, self.where(step)
        unit_buffer = refs["units"].at[stage] if "units" in refs else None
        rows = pl.ds(where["down"] * UNIT_ROWS, UNIT_ROWS)
        columns = pl.ds(where["across"] * UNIT_COLUMNS, UNIT_COLUMNS)
        if stream.width is None:
            in_tile = (rows, columns)
            rows = pl.ds(self.row * UNIT_ROWS, UNIT_ROWS)
            columns = pl.ds(where["unit"] * UNIT_COLUMNS, UNIT_COLUMNS)

            def copy_dense(source: int) -> None:
                array = refs[f"dense.{source}"].at[rows, columns]
                plgpu.copy_gmem_to_smem(array, unit_buffer, barrier)

            if not stream.paged:
                self.per_source(copy_dense)
                return

            @pl.when(where["entry"] < 0)
            def _copy_dense() -> None:
                self.per_source(copy_dense)

            @pl.when(where["entry"] >= 0)
            def _copy_page_over() -> None:
                page = refs["pages"].at[where["entry"], *in_tile]
                plgpu.copy_gmem_to_smem(page, unit_buffer, barrier)

            return

        def copy_words(source: int) -> None:
            words = refs[f"words.{source}"].at[where["slot"], where["down"], where["across"]]
            plgpu.copy_gmem_to_smem(words, refs["words_in_flight"].at[stage], barrier)
            down, across = stream.tile[0] // UNIT_ROWS, stream.tile[1] // UNIT_COLUMNS
            unit = (where["slot"] * down + where["down"]) * across + where["across"]
            record = pl.ds(unit * stream.record, stream.copied_record)
            records = refs[f"escapes.{source}"].at[record]
            plgpu.copy_gmem_to_smem(records, refs["records_in_flight"].at[stage], barrier)

        def copy_unit(array: Any) -> None:
            plgpu.copy_gmem_to_smem(array, unit_buffer, barrier)
            # There is no record to come.
            plgpu.barrier_arrive(barrier)

        def copy_verbatim(source: int) -> None:
            if f"verbatim.{source}" in refs:
                copy_unit(refs[f"verbatim.{source}"].at[-where["slot"] - 1, rows, columns])

        @self._when_decoding(where)
        def _copy_words() -> None:
            self.per_source(copy_words)

        if stream.paged:

            @pl.when(where["entry"] >= 0)
            def _copy_page() -> None:
                copy_unit(refs["pages"].at[where["entry"], rows, columns])

        if stream.verbatim:

            @pl.when((where["entry"] < 0) & (where["slot"] < 0))
            def _copy_verbatim() -> None:
                self.per_source(copy_verbatim)

    def decoded(self, stage: jax.Array) -> jax.Array:
        """bf16[64, 128] in registers, decoded from the words of a stage."""
        stream, refs = self.stream, self.refs
        assert stream.width is not None
        lanes = stream.lanes
        words = lanes.unit_words(refs["words_in_flight"].at[stage])
        registers = window_layout.unpack(words, self.bias, stream.width, lanes.swap, lanes.merge)
        record = refs["records_in_flight"].at[stage]
        assert stream.record is not None
        registers = lanes.patch(registers, record, stream.record)
        return lanes.assemble(registers)

    def unit(self, step: jax.Array, stage: jax.Array) -> jax.Array:
        """bf16[64, 128] in registers, wherever the unit came from; fills its page if told."""
        if not self.stream.buffered:
            return self.decoded(stage)
        where, buffer = self.where(step), self.refs["units"].at[stage]

        def decode() -> jax.Array:
            return plgpu.layout_cast(self.decoded(stage), plgpu.Layout.WGMMA)

        def read() -> jax.Array:
            return plgpu.load(buffer, layout=plgpu.Layout.WGMMA)

        unit = jax.lax.cond(self._decoding(where), decode, read)
        if self.stream.paged:

            @pl.when(where["entry"] < DECODE)
            def _() -> None:
                buffer[...] = unit
                plgpu.commit_smem()
                self.fill(step, stage)

        return unit

    def stage_decoded(self, step: jax.Array, stage: jax.Array) -> None:
        """Leaves the step's unit in its buffer, wherever it came from; fills its page if told."""
        if self.stream.width is None:
            return

        @self._when_decoding(self.where(step))
        def _() -> None:
            self.refs["units"].at[stage][...] = self.decoded(stage)

        plgpu.commit_smem()
        if self.stream.paged:
            self.fill(step, stage)

    def fill(self, step: jax.Array, stage: jax.Array) -> None:
        """Stores the unit in a stage's buffer into the page that the page table names, if any."""

        @pl.when(self.where(step)["entry"] < DECODE)
        def _() -> None:
            self.copy_to_page(step, stage)
            plgpu.commit_smem_to_gmem_group()
            plgpu.wait_smem_to_gmem(0)

    def fills(self, step: jax.Array) -> jax.Array:
        """Whether the step's unit is compressed and goes into a page."""
        where = self.where(step)
        return (where["entry"] < DECODE) & (where["slot"] >= 0)

    def copy_to_page(self, step: jax.Array, stage: jax.Array) -> None:
        """Starts the copy of the unit in a stage's buffer into its page, in a group to commit."""
        where = self.where(step)
        rows = pl.ds(where["down"] * UNIT_ROWS, UNIT_ROWS)
        columns = pl.ds(where["across"] * UNIT_COLUMNS, UNIT_COLUMNS)
        target = self.refs["pages"].at[-where["entry"] - 2, rows, columns]
        plgpu.copy_smem_to_gmem(self.refs["units"].at[stage], target, commit_group=False)

    def record(self, step: jax.Array, decoded: jax.Array | None = None) -> None:
        """Notes whether the step's unit was decoded: all are that must be, unless told."""
        if not self.stream.counted:
            return
        where, across = self.where(step), self.stream.tile[1] // UNIT_COLUMNS
        tile = self.refs["first_tile"][0] + self.of_part("first_tile") + where["tile"]
        place = where["down"] * across + where["across"]
        decoded = self._decoding(where) if decoded is None else decoded
        self.refs["decoded"][tile, place] = jnp.where(decoded, 1, 0)
