"""Shared memory through which weights come to their warps: it takes no registers to wait there.

A warpgroup has a ring of slots, of which every warp has a part for its stripe of 16 rows of 128
weights. It fills that by asynchronous copies (`cp.async`), whole rows at a time, waits for them and
reads them by itself, as the matrix unit wants them (`ldmatrix`). The 16 bytes of a row are each in
another place from row to row, so that neither meets conflicts.

Compressed words are loaded into registers instead: what is decoded of them takes no more of those,
and by way of shared memory they came later.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, scf
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window_layout
from codecjax.codecs.window_layout import REGISTERS
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS
from kernels_pallas.emit import (
    LANE_LAYOUT,
    LANES,
    address,
    constant,
    field,
    from_scalar,
    scalar,
    shifted,
    word_type,
)
from kernels_pallas.lane_memory import as_words, word_address
from kernels_pallas.lanes import WORDS_TYPE, in_all_lanes
from kernels_pallas.row_major import VECTOR
from kernels_pallas.warps import WARPS, Warps

STRIPE_ROWS = UNIT_ROWS // WARPS
# Of each ring, if there are so many turns: what is asked for at once.
_MOST_SLOTS = 2
# Of all rings of a CTA.
_MOST_BYTES = 2**17
_ROW_WORDS = UNIT_COLUMNS // 2
# What is copied at a time is VECTOR words: how many of those a row has.
_CHUNKS = _ROW_WORDS // VECTOR


@dataclasses.dataclass(frozen=True)
class Place:
    """Where stripes are in row-major weights.

    Attributes:
      ref: bf16 ref in device memory.
      row, unit: uint32[128], the first row of the stripe's unit and its column of units, the same
        for all of a warp.
    """

    ref: Any
    row: jax.Array
    unit: jax.Array

    @property
    def row_words(self) -> int:
        """From a row to the next."""
        return self.ref.shape[-1] // 2


@dataclasses.dataclass(frozen=True)
class StripeStage:
    """The ring of a warpgroup.

    Attributes:
      warps: operations on lanes.
      slots: of the ring.
    """

    warps: Warps
    slots: int

    @classmethod
    def of(cls, warps: Warps, warpgroups: int, turns: int) -> "StripeStage":
        """For warps that have `turns` stripes each, one after another."""
        most = _MOST_BYTES // (4 * warpgroups * REGISTERS * LANES)
        return cls(warps, max(1, min(_MOST_SLOTS, turns, most)))

    def scratch(self, warpgroups: int) -> dict[str, Any]:
        """Shared memory by name, for each warpgroup its own."""
        return {"stripes": plgpu.SMEM((warpgroups, self.slots, REGISTERS, LANES), jnp.uint32)}

    def slot(self, turn: jax.Array) -> jax.Array:
        """int32 scalar: the slot of the stripes of that turn."""
        return jax.lax.rem(turn, jnp.int32(self.slots))

    def ask(
        self, stripes: Any, stripe: jax.Array, dense: Place, page: Place | None, resident: jax.Array
    ) -> None:
        """Asks for a stripe of a dense matrix, or of the page that holds its tile.

        Args:
          stripes: the slot.
          stripe: int32 scalar, which of its unit's stripes each warp has.
          dense, page: where it may be; None if there are no pages.
          resident: uint32[128], not 0 where the warp's is in the page.
        """
        warps, first = self.warps, stripe.astype(jnp.uint32) * jnp.uint32(STRIPE_ROWS)
        places = [dense] if page is None else [page, dense]
        if warps.interpret:
            found = [self._registers(place, first) for place in places]
            stripes[...] = jnp.where(resident != 0, found[0], found[-1])
            return
        lane = warps.lane()
        upper, chunk = lane // _CHUNKS, lane % _CHUNKS
        sources = [
            (place.row + first + upper) * jnp.uint32(place.row_words)
            + place.unit * jnp.uint32(_ROW_WORDS)
            + chunk * jnp.uint32(VECTOR)
            for place in places
        ]
        row = warps.warp() * jnp.uint32(STRIPE_ROWS) + upper
        targets = [
            row * jnp.uint32(_ROW_WORDS) + (chunk ^ upper ^ jnp.uint32(down)) * jnp.uint32(VECTOR)
            for down in range(0, 8, 2)
        ]
        lanes = [*sources, *targets, *([] if page is None else [resident])]

        @plgpu.inline_mgpu(
            arg_types=(*(plgpu.RefType(),) * (1 + len(places)), *(LANE_LAYOUT,) * len(lanes))
        )
        def apply(_: Any, stripes: ir.Value, *arguments: Any) -> None:
            refs = arguments[: len(places)]
            values = [scalar(each.registers.item()) for each in arguments[len(places) :]]
            # Lanes that still read what was there come first.
            mgpu_utils.warp_barrier()
            sources, targets = values[: len(places)], values[len(places) : len(places) + 4]
            slot = address(stripes, shared=True)
            starts = [arith.addi(slot, arith.shli(each, constant(2))) for each in targets]

            def copy(number: int) -> None:
                source = word_address(refs[number], sources[number])
                for down in range(0, STRIPE_ROWS, 2):
                    _copy(
                        starts[down % 8 // 2],
                        4 * _ROW_WORDS * down,
                        source,
                        4 * places[number].row_words * down,
                    )

            if page is None:
                copy(0)
                return
            here = arith.cmpi(arith.CmpIPredicate.ne, values[-1], constant(0))
            branch = scf.IfOp(here, has_else=True)
            for number, block in enumerate((branch.then_block, branch.else_block)):
                with ir.InsertionPoint(block):
                    copy(number)
                    scf.yield_([])

        apply(stripes, *(place.ref for place in places), *lanes)

    def _registers(self, place: Place, first: jax.Array) -> jax.Array:
        """uint32[32, 128] at a place, for the interpreter."""
        flat, lane = as_words(place.ref[...]), self.warps.lane()

        def register(number: int) -> jax.Array:
            row = place.row + first + window_layout.row_of(lane, jnp.uint32(number))
            column = window_layout.column_of(lane, jnp.uint32(number), jnp.uint32(0))
            index = row * jnp.uint32(place.row_words) + place.unit * jnp.uint32(_ROW_WORDS)
            return flat[index + column // 2]

        return jnp.stack([register(number) for number in range(REGISTERS)])

    def asked(self) -> None:
        """Says that all of a turn's stripes are asked for, if there are any."""
        if not self.warps.interpret:
            in_all_lanes("cp.async.commit_group;")

    def wait(self) -> None:
        """Waits for all but the last turns that were asked for, one fewer than there are slots."""
        if not self.warps.interpret:
            in_all_lanes(f"cp.async.wait_group {self.slots - 1}; bar.warp.sync 0xffffffff;")

    def registers(self, stripes: Any) -> list[jax.Array]:
        """The 32 registers of each warp's stripe in a slot, uint32[128] each."""
        if self.warps.interpret:
            return list(stripes[...])

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), LANE_LAYOUT), return_type=[WORDS_TYPE] * REGISTERS
        )
        def apply(_: Any, stripes: ir.Value, number: Any) -> Any:
            start, lane = address(stripes, shared=True), scalar(number.registers.item())
            return [from_scalar(word) for word in _matrices(start, lane)]

        return list(apply(stripes, self.warps.index()))


def _copy(target: ir.Value, target_bytes: int, source: ir.Value, source_bytes: int) -> None:
    mgpu_utils.inline_ptx(
        f"cp.async.cg.shared.global [$0+{target_bytes}], [$1+{source_bytes}], {4 * VECTOR};",
        target,
        source,
        has_side_effects=True,
    )


def _matrices(start: ir.Value, number: ir.Value) -> list[ir.Value]:
    """Emits the loads of a stripe's registers; `number` is the lane's in the warpgroup.

    Of the four matrices of 8 rows of 16 bytes that an instruction loads, each of eight lanes names
    a row: the first two are below one another, the others right of those.
    """
    row = arith.addi(field(number, 0, 7), arith.shli(field(number, 3, 1), constant(3)))
    row = arith.addi(row, arith.shli(shifted(number, 5), constant(STRIPE_ROWS.bit_length() - 1)))
    mine = arith.addi(start, arith.muli(row, constant(4 * _ROW_WORDS)))
    chunk = arith.xori(field(number, 0, 7), field(number, 4, 1))
    found: list[ir.Value] = []
    for part in range(REGISTERS // 4):
        place = arith.shli(arith.xori(chunk, constant(2 * part)), constant(4))
        found += mgpu_utils.inline_ptx(
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];",
            arith.addi(mine, place),
            result_types=[word_type()] * 4,
            has_side_effects=True,
            convergent=True,
        )
    return found
