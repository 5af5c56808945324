"""How the kernel for few rows of x gets at weights: each warp walks along K by itself.

A *stripe* is what one warp has of a unit in `window_layout`: 16 rows of 128 columns. A CTA has one
row of stripes, and its warps take turns along it. So what is scalar in `unit_walk` is here a
vector of uint32[128], the same for all lanes of a warp, and a choice between what is compressed and
what is not is a warp's own branch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window_layout
from codecjax.codecs.window_layout import REGISTERS
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS
from kernels_pallas.emit import LANE_LAYOUT, LANES
from kernels_pallas.lane_memory import Choice, Loads, unit_words
from kernels_pallas.row_major import ORDER, UNORDERED, VECTOR, place_in_rows
from kernels_pallas.stripe_stage import STRIPE_ROWS, Place, StripeStage
from kernels_pallas.unit_stream import UnitStream
from kernels_pallas.unit_walk import UnitWalk
from kernels_pallas.warps import WARP_LANES, WARPS, Warps

Words = tuple[jax.Array, ...]


def _u32(value: Any) -> jax.Array:
    return jnp.uint32(value)


def _flag(condition: jax.Array) -> jax.Array:
    # A condition that is the same for all lanes would have a layout of its own.
    return plgpu.layout_cast(jnp.where(condition, _u32(1), _u32(0)), LANE_LAYOUT)


@dataclasses.dataclass(frozen=True)
class StripePlace:
    """Where the stripes of a CTA's warps are, uint32[128] each.

    Attributes:
      unit: unit column.
      tile: number in the matrix.
      across: unit column in the tile.
      entry: of the page table; int32 as bits.
      slot: of the tile; int32 as bits.
    """

    unit: jax.Array
    tile: jax.Array
    across: jax.Array
    entry: jax.Array
    slot: jax.Array

    @property
    def resident(self) -> jax.Array:
        """bool[128]: the tile is in a page."""
        return self.entry < _u32(1 << 31)

    @property
    def verbatim(self) -> jax.Array:
        """bool[128]: the tile was not compressed."""
        return self.slot >= _u32(1 << 31)


@dataclasses.dataclass(frozen=True)
class StripeWalk:
    """The walk of a CTA's warps along a row of stripes, inside a kernel.

    Attributes:
      walk: the row of units that the stripes belong to.
      warps: operations on lanes.
      stripe: which of its units' stripes, an int32 scalar.
      first: of the matrix's tiles in the page table, uint32[128], the same for all lanes.
      bias: row bases of the lane's two rows, as `window_layout.unpack` wants them.
    """

    walk: UnitWalk
    warps: Warps
    stripe: jax.Array
    first: jax.Array | None
    bias: Words

    @staticmethod
    def scratch(stream: UnitStream, *walks: int) -> dict[str, Any]:
        """Shared memory by name: where each tile is, for walks of that shape."""
        every = stream.scratch(staged=False, walks=walks)
        return {name: every[name] for name in ("entries", "slots") if name in every}

    @classmethod
    def start(
        cls, stream: UnitStream, warps: Warps, refs: dict[str, Any], row: jax.Array
    ) -> "StripeWalk":
        """The walk along the stripes number `row`; `prepare` completes it."""
        walk = UnitWalk.start(stream, refs, row // WARPS, jnp.int32(0))
        first = None
        if stream.counted:
            nowhere = _u32(0) * warps.index()
            (first,) = warps.load(refs["first_tile"], nowhere, [0], early=True)
            first += walk.of_part("first_tile").astype(jnp.uint32)
        return cls(walk, warps, jax.lax.rem(row, WARPS), first, ())

    def prepare(self) -> "StripeWalk":
        """The walk with its row bases."""
        if self.walk.stream.width is None:
            return self
        return dataclasses.replace(self, bias=self.walk.row_bias(self._lane))

    @property
    def _lane(self) -> jax.Array:
        """uint32[128]: which of its unit's lanes each lane is."""
        return self.stripe.astype(jnp.uint32) * _u32(WARP_LANES) + self.warps.lane()

    def place(self, unit: jax.Array) -> StripePlace:
        """Where the stripes of unit columns uint32[128] are, the same for all of a warp."""
        walk, stream = self.walk, self.walk.stream
        down, columns = stream.tile[0] // UNIT_ROWS, stream.tile[1] // UNIT_COLUMNS
        nth = unit // _u32(columns)
        tile = nth + (walk.row // down * stream.tiles_across).astype(jnp.uint32)
        slot, entry = tile, jnp.full(LANES, 0xFFFFFFFF, jnp.uint32)
        if stream.paged:
            entry = self.warps.gather(walk.refs["entries"], nth)
        if stream.verbatim:
            slot = self.warps.gather(walk.refs["slots"], nth)
        elif stream.width is not None:
            slot = tile + walk.of_place("first_slot").astype(jnp.uint32)
        return StripePlace(unit, tile, unit - nth * _u32(columns), entry, slot)

    def fetch(self, place: StripePlace) -> Words:
        """Asks for compressed stripes: words and then escape record, or weights as they are."""
        if not self.walk.stream.buffered:
            return self.walk.choose(lambda source: self._words(source, place))
        return self.walk.choose(lambda source: self._words_or_weights(source, place))

    def stage(self, place: StripePlace, stage: StripeStage, slot: jax.Array) -> None:
        """Asks for stripes of dense matrices, or of the pages that hold them, to come to a slot."""
        stream, refs = self.walk.stream, self.walk.refs
        row = (self.walk.row * UNIT_ROWS).astype(jnp.uint32) + _u32(0) * place.unit

        def ask(source: int) -> None:
            dense, page = Place(refs[f"dense.{source}"], row, place.unit), None
            if stream.paged:
                page = Place(refs["pages"], self._row_in_tile(place.entry), place.across)
            stripes, resident = refs["stripes"].at[slot], _flag(place.resident)
            stage.ask(stripes, self.stripe, dense, page, resident)

        self.walk.per_source(ask)

    def _row_in_tile(self, number: jax.Array) -> jax.Array:
        """uint32[128]: the unit's first row in the page or verbatim tile of that number."""
        rows = self.walk.stream.tile[0]
        down = jax.lax.rem(self.walk.row, rows // UNIT_ROWS) * UNIT_ROWS
        return number * _u32(rows) + down.astype(jnp.uint32)

    def _in_tile(self, number: jax.Array, place: StripePlace) -> tuple[jax.Array, list[int]]:
        """`place_in_rows` of the page or verbatim tile of that number, uint32[128]."""
        row, columns = self._row_in_tile(number), self.walk.stream.tile[1]
        return place_in_rows(self._lane, row, place.across, columns)

    def _number(self, place: StripePlace) -> jax.Array:
        """uint32[128]: the compressed unit's number among all of its array."""
        rows, columns = self.walk.stream.tile
        down = rows // UNIT_ROWS
        number = place.slot * _u32(down) + jax.lax.rem(self.walk.row, down).astype(jnp.uint32)
        return number * _u32(columns // UNIT_COLUMNS) + place.across

    def _record(self, source: int, number: jax.Array) -> list[jax.Array]:
        """The escape record of the warp's unit."""
        record = self.walk.stream.record
        assert record is not None
        return self.warps.load_record(self.walk.refs[f"escapes.{source}"], number, record)

    def _words(self, source: int, place: StripePlace) -> list[jax.Array]:
        number = self._number(place)
        loads = unit_words(number, self._lane, self._word_count)
        words = self.warps.load_all(self.walk.refs[f"words.{source}"], loads)
        return words + self._record(source, number)

    def _words_or_weights(self, source: int, place: StripePlace) -> list[jax.Array]:
        """32 words, and the record if they are compressed."""
        stream, refs, number = self.walk.stream, self.walk.refs, self._number(place)
        words = unit_words(number, self._lane, self._word_count)
        choices = [Choice(refs[f"words.{source}"], words)]
        chosen: list[jax.Array] = []
        if f"verbatim.{source}" in refs:
            index, weights = self._in_tile(_u32(0xFFFFFFFF) - place.slot, place)
            loads = (Loads(index, tuple(weights), VECTOR),)
            choices.insert(0, Choice(refs[f"verbatim.{source}"], loads))
            chosen.insert(0, place.verbatim)
        if stream.paged:
            index, weights = self._in_tile(place.entry, place)
            choices.insert(0, Choice(refs["pages"], (Loads(index, tuple(weights), VECTOR),)))
            chosen.insert(0, place.resident)
        found = self.warps.load_one_of(choices, [_flag(each) for each in chosen], REGISTERS)
        compressed = ~(place.resident | place.verbatim)
        return found + self._record(source, jnp.where(compressed, number, _u32(0)))

    @property
    def _word_count(self) -> int:
        assert self.walk.stream.width is not None
        return window_layout.WORDS[self.walk.stream.width]

    def registers(self, place: StripePlace, fetched: Words) -> Words:
        """The 32 registers of stripes, decoded from what was fetched; fills their pages if told."""
        stream = self.walk.stream
        assert stream.record is not None
        assert stream.width is not None
        count = REGISTERS if stream.buffered else self._word_count
        compressed = ~(place.resident | place.verbatim)
        registers = tuple(
            self.warps.decode(
                fetched[:count],
                fetched[count:],
                self.stripe.astype(jnp.uint32) + _u32(0) * self.warps.lane(),
                self.bias,
                stream.record,
                stream.width,
                _flag(compressed) if stream.buffered else None,
                ORDER,
            )
        )
        if stream.paged:
            self._fill(place, registers)
        return registers

    def _fill(self, place: StripePlace, registers: Words) -> None:
        """Stores the registers into the pages that the page table names."""
        told = ~place.resident & (place.entry < _u32(0xFFFFFFFF))
        page, pages = _u32(0xFFFFFFFE) - place.entry, self.walk.refs["pages"]
        if not self.warps.interpret:
            index, offsets = self._in_tile(page, place)
            weights = [registers[each] for each in UNORDERED]
            self.warps.store(pages, index, offsets, weights, _flag(told), transposed=True)
            return
        down = jax.lax.rem(self.walk.row, self.walk.stream.tile[0] // UNIT_ROWS)
        rows = pl.ds(down * UNIT_ROWS + self.stripe * STRIPE_ROWS, STRIPE_ROWS)
        by_warp = jnp.stack(registers).reshape(UNIT_COLUMNS // 8, 2, WARPS, 8, 4)
        for warp, block in enumerate(by_warp.transpose(2, 1, 3, 0, 4)):
            lane = warp * WARP_LANES
            columns = pl.ds(place.across[lane].astype(jnp.int32) * UNIT_COLUMNS, UNIT_COLUMNS)
            weights = jax.lax.bitcast_convert_type(block, jnp.bfloat16)
            target = (page[lane].astype(jnp.int32), rows, columns)

            @pl.when(told[lane])
            def _(target: Any = target, weights: jax.Array = weights) -> None:
                pages[target] = weights.reshape(STRIPE_ROWS, UNIT_COLUMNS)

    def record(self, place: StripePlace, used: jax.Array) -> None:
        """Notes whether stripes in use (bool[128]) were decoded, in the CTA of the first rows."""
        stream = self.walk.stream
        if self.first is None:
            return
        rows, columns = stream.tile
        down = jax.lax.rem(self.walk.row, rows // UNIT_ROWS)
        unit = (down * (columns // UNIT_COLUMNS)).astype(jnp.uint32) + place.across
        tile = self.first + place.tile
        decoded = _flag(~(place.resident | place.verbatim))
        ref = self.walk.refs["decoded"]
        if not self.warps.interpret:
            noted = used & (self.warps.lane() == 0) & (self.stripe == 0)
            units = _u32(rows // UNIT_ROWS * (columns // UNIT_COLUMNS))
            self.warps.store(ref, tile * units + unit, [0], [decoded], _flag(noted))
            return
        for lane in range(0, LANES, WARP_LANES):

            @pl.when(used[lane] & (self.stripe == 0))
            def _(lane: int = lane) -> None:
                here = (tile[lane].astype(jnp.int32), unit[lane].astype(jnp.int32))
                ref[here] = decoded[lane].astype(jnp.int32)
