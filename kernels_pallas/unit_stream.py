"""How both kernels get the units of a matrix into shared memory, decoded.

A CTA (one warpgroup) walks along K through one row of 64 x 128 units. For each unit it looks
up where the tile is: in a page, verbatim, or compressed. Pages and verbatim tiles are copied
into the unit's buffer as they are. Compressed words are copied to their own buffer, decoded in
registers, stored to the unit's buffer and patched with the unit's escapes. Whatever the source,
the same bits end in the same buffer in the same order, so what follows cannot tell.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window_layout
from codecjax.tiles import DECODE, UNIT_COLUMNS, UNIT_ROWS, Residency, TiledMatrix, units_per_tile
from kernels_pallas.lanes import LANE_LAYOUT, LANES, SWIZZLE_TRANSFORMS, Lanes

MAX_TILES_ACROSS = LANES


@dataclasses.dataclass(frozen=True)
class UnitStream:
    """Static facts of one matrix as a kernel sees it; `operands` gives the arrays to match.

    Attributes:
      grid: tiles down and across.
      tile: rows and columns of a tile.
      width: the window codec's width; None for a dense matrix.
      capacity: length of an escape list.
      verbatim: whether some tiles are verbatim.
      counted: whether decoded units are recorded.
      paged: whether tiles may be resident.
      stages: buffers in flight.
      lanes: lane operations.
    """

    grid: tuple[int, int]
    tile: tuple[int, int]
    width: int | None
    capacity: int
    verbatim: bool
    counted: bool
    paged: bool
    stages: int
    lanes: Lanes

    @classmethod
    def of(
        cls, t: TiledMatrix, residency: Residency | None, stages: int, lanes: Lanes
    ) -> "UnitStream":
        dense = t.is_dense
        return cls(
            grid=t.grid,
            tile=t.tile,
            width=None if dense else t.options_dict["width"],
            capacity=0 if dense else t.arrays["escapes"].shape[-1],
            verbatim=not dense and t.arrays["verbatim"].shape[0] > 0,
            counted=not dense and residency is not None,
            paged=not dense and residency is not None and residency.pages is not None,
            stages=stages,
            lanes=lanes,
        )

    @property
    def units_across(self) -> int:
        return self.grid[1] * self.tile[1] // UNIT_COLUMNS

    @property
    def units_down(self) -> int:
        return self.grid[0] * self.tile[0] // UNIT_ROWS

    def operands(
        self, t: TiledMatrix, residency: Residency | None, first_tile: jax.Array
    ) -> dict[str, Any]:
        """The kernel's arrays by name; `pages` and `decoded` as refs that it may write."""
        if t.is_dense:
            pad = [(0, -size % unit) for size, unit in zip(t.shape, t.tile, strict=True)]
            return {"dense": jnp.pad(t.arrays["dense"], pad)}
        arrays = {name: t.arrays[name] for name in ("words", "escapes", "base")}
        if self.verbatim:
            arrays |= {"slot": t.arrays["slot"], "verbatim": t.arrays["verbatim"]}
        if self.counted:
            assert residency is not None
            arrays |= {
                "first_tile": first_tile.reshape(1),
                "decoded": jax.new_ref(residency.decoded),
            }
            if self.paged:
                arrays |= {
                    "page_table": residency.page_table,
                    "pages": jax.new_ref(residency.pages),
                }
        return arrays

    def residency(self, before: Residency | None, operands: dict[str, Any]) -> Residency | None:
        """The residency after the kernel has run on `operands`."""
        if before is None or not self.counted:
            return before
        pages = jax.freeze(operands["pages"]) if self.paged else before.pages
        return Residency(pages, before.page_table, jax.freeze(operands["decoded"]))

    def scratch(self) -> dict[str, Any]:
        """Shared memory: decoded units, words in flight, and where each tile is."""
        unit = (self.stages, UNIT_ROWS, UNIT_COLUMNS)
        scratch = {"units": plgpu.SMEM(unit, jnp.bfloat16, transforms=SWIZZLE_TRANSFORMS)}
        if self.width is not None:
            words = (self.stages, window_layout.WORDS[self.width], LANES)
            scratch["words_in_flight"] = plgpu.SMEM(words, jnp.uint32)
        if self.paged:
            scratch["entries"] = plgpu.SMEM((LANES,), jnp.uint32)
        if self.verbatim:
            scratch["slots"] = plgpu.SMEM((LANES,), jnp.uint32)
        return scratch

    def walk(self, refs: dict[str, Any], row: jax.Array, first_unit: jax.Array) -> "UnitWalk":
        """Starts at unit `first_unit` of unit row `row`."""
        return UnitWalk.start(self, refs, row, first_unit)


@dataclasses.dataclass(frozen=True)
class UnitWalk:
    """A CTA's walk along one row of units, inside a kernel.

    Attributes:
      stream: the matrix.
      refs: operands and scratch by name.
      row: unit row in the matrix.
      first_unit: unit column where the walk starts.
      bias: row bases of the lane's two rows, as `window_layout.unpack` wants them.
    """

    stream: UnitStream
    refs: dict[str, Any]
    row: jax.Array
    first_unit: jax.Array
    bias: tuple[jax.Array, ...]

    @classmethod
    def start(
        cls, stream: UnitStream, refs: dict[str, Any], row: jax.Array, first_unit: jax.Array
    ) -> "UnitWalk":
        lanes, bias = stream.lanes, ()
        if stream.width is not None:
            lane = lanes.index()
            matrix_row = row.astype(jnp.uint32) * UNIT_ROWS + (lane >> 5) * 16 + ((lane >> 2) & 7)
            spread = jnp.uint32(1 << 7 | 1 << 23)
            bias = tuple(
                lanes.gather(refs["base"], matrix_row + jnp.uint32(8 * half)) * spread
                for half in range(2)
            )
            if stream.paged or stream.verbatim:
                down, across = stream.tile[0] // UNIT_ROWS, stream.tile[1] // UNIT_COLUMNS
                first = row // down * stream.grid[1] + first_unit // across
                last = stream.grid[0] * stream.grid[1] - 1
                index = jnp.minimum(first.astype(jnp.uint32) + lane, jnp.uint32(last))
                if stream.verbatim:
                    refs["slots"][...] = lanes.gather(refs["slot"], index)
                if stream.paged:
                    offset = refs["first_tile"][0].astype(jnp.uint32)
                    refs["entries"][...] = lanes.gather(refs["page_table"], index + offset)
                plgpu.commit_smem()
        return cls(stream, refs, row, first_unit, bias)

    def _where(self, step: jax.Array) -> dict[str, jax.Array]:
        """Tile, place in the tile, page-table entry and slot of the step's unit."""
        stream = self.stream
        down, across = stream.tile[0] // UNIT_ROWS, stream.tile[1] // UNIT_COLUMNS
        unit = self.first_unit + step
        tile = self.row // down * stream.grid[1] + unit // across
        nth = unit // across - self.first_unit // across
        entry = jnp.int32(DECODE)
        if stream.paged:
            entry = self.refs["entries"][nth].astype(jnp.int32)
        slot = self.refs["slots"][nth].astype(jnp.int32) if stream.verbatim else tile
        return {
            "unit": unit,
            "tile": tile,
            "down": self.row % down,
            "across": unit % across,
            "entry": entry,
            "slot": slot,
        }

    def _when_decoding(self, where: dict[str, jax.Array]) -> Any:
        """Decorator: run where the unit is compressed and not resident."""
        if not self.stream.paged and not self.stream.verbatim:
            return lambda body: body()
        return pl.when((where["entry"] < 0) & (where["slot"] >= 0))

    def fetch(self, step: jax.Array, stage: jax.Array, barrier: Any) -> None:
        """Starts the copy of a step's unit into the buffers of `stage`; one arrival."""
        stream, refs, where = self.stream, self.refs, self._where(step)
        unit_buffer = refs["units"].at[stage]
        rows = pl.ds(where["down"] * UNIT_ROWS, UNIT_ROWS)
        columns = pl.ds(where["across"] * UNIT_COLUMNS, UNIT_COLUMNS)
        if stream.width is None:
            rows = pl.ds(self.row * UNIT_ROWS, UNIT_ROWS)
            columns = pl.ds(where["unit"] * UNIT_COLUMNS, UNIT_COLUMNS)
            plgpu.copy_gmem_to_smem(refs["dense"].at[rows, columns], unit_buffer, barrier)
            return

        @self._when_decoding(where)
        def _() -> None:
            source = refs["words"].at[where["slot"], where["down"], where["across"]]
            plgpu.copy_gmem_to_smem(source, refs["words_in_flight"].at[stage], barrier)

        if stream.paged:

            @pl.when(where["entry"] >= 0)
            def _() -> None:
                source = refs["pages"].at[where["entry"], rows, columns]
                plgpu.copy_gmem_to_smem(source, unit_buffer, barrier)

        if stream.verbatim:

            @pl.when((where["entry"] < 0) & (where["slot"] < 0))
            def _() -> None:
                source = refs["verbatim"].at[-where["slot"] - 1, rows, columns]
                plgpu.copy_gmem_to_smem(source, unit_buffer, barrier)

    def load_escapes(self, step: jax.Array) -> tuple[jax.Array, ...]:
        """The step's escape list, a few entries a lane; loaded ahead to hide the latency."""
        stream = self.stream
        if stream.width is None:
            return ()
        where, lane = self._where(step), stream.lanes.index()
        down, across = stream.tile[0] // UNIT_ROWS, stream.tile[1] // UNIT_COLUMNS
        listed = (jnp.maximum(where["slot"], 0) * down + where["down"]) * across + where["across"]
        first = listed.astype(jnp.uint32) * jnp.uint32(stream.capacity)
        entries = []
        for offset in range(0, stream.capacity, LANES):
            position = lane + jnp.uint32(offset)
            within = jnp.minimum(position, jnp.uint32(stream.capacity - 1))
            entry = stream.lanes.gather(self.refs["escapes"], first + within)
            if offset + LANES > stream.capacity:
                entry = jnp.where(position == within, entry, jnp.uint32(0))
            entries.append(plgpu.layout_cast(entry, LANE_LAYOUT))
        return tuple(entries)

    def materialize(
        self, step: jax.Array, stage: jax.Array, escapes: tuple[jax.Array, ...]
    ) -> None:
        """Leaves the step's unit in its buffer, visible to wgmma and to copies."""
        stream, refs = self.stream, self.refs
        if stream.width is None:
            return
        where = self._where(step)
        width = stream.width

        @self._when_decoding(where)
        def _() -> None:
            words = [
                plgpu.load(
                    refs["words_in_flight"].at[stage, i], layout=LANE_LAYOUT, optimized=False
                )
                for i in range(window_layout.WORDS[width])
            ]
            lanes = stream.lanes
            registers = window_layout.unpack(words, self.bias, width, lanes.spread, lanes.merge)
            unit = refs["units"].at[stage]
            unit[...] = lanes.assemble(registers)
            # Escapes land in other lanes' words: the barrier orders the two stores.
            plgpu.commit_smem()
            for entry in escapes:
                lanes.patch(unit, entry)
            plgpu.commit_smem()
            if stream.paged:
                self._fill(where, unit)

        if stream.counted:
            decoded = (where["entry"] < 0) & (where["slot"] >= 0)
            tile = refs["first_tile"][0] + where["tile"]
            across = stream.tile[1] // UNIT_COLUMNS
            place = where["down"] * across + where["across"]
            refs["decoded"][tile, place] = jnp.where(decoded, 1, 0)

    def _fill(self, where: dict[str, jax.Array], unit: Any) -> None:
        """Stores a decoded unit into the page that the page table names, if it names one."""

        @pl.when(where["entry"] < DECODE)
        def _() -> None:
            rows = pl.ds(where["down"] * UNIT_ROWS, UNIT_ROWS)
            columns = pl.ds(where["across"] * UNIT_COLUMNS, UNIT_COLUMNS)
            page = -where["entry"] - 2
            plgpu.copy_smem_to_gmem(unit, self.refs["pages"].at[page, rows, columns])
            plgpu.wait_smem_to_gmem(0)


def units_of(t: TiledMatrix) -> int:
    """Units that a kernel walks through, padding included."""
    return t.tiles * units_per_tile(t.tile)
