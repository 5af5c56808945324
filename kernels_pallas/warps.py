"""What warps need that go their own ways: they decode, patch and multiply in their registers.

As in `lanes`, each method has two forms: inline Mosaic GPU code, and plain JAX.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, scf
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window, window_layout, window_records
from kernels_pallas.emit import (
    LANE_LAYOUT,
    LANES,
    constant,
    emit_patch,
    emit_transpose,
    emit_unpack,
    field,
    from_scalar,
    ptx,
    scalar,
    shifted,
    shuffle,
    word_type,
)
from kernels_pallas.lane_memory import LaneMemory
from kernels_pallas.lanes import in_all_lanes, in_lanes

WARP_LANES = 32
WARPS = LANES // WARP_LANES
# Of a lane, see `Warps.multiply_in_warp`.
SUMS = 4
# Mosaic GPU has 0, and of up to 8 warpgroups 1 to 8.
_CTA_BARRIER = 15
# One float32 a lane.
_FLOATS_TYPE = plgpu.ShapeDtypeStruct((LANES,), jnp.float32, layout=LANE_LAYOUT)
_PAIR = ptx("cvt.rn.bf16x2.f32 $0, $2, $1;")


@dataclasses.dataclass(frozen=True)
class Warps(LaneMemory):
    """Operations in which a warp's lanes share something, but the warpgroup's warps need not."""

    def lane(self) -> jax.Array:
        """uint32[128]: number of the lane in its warp."""
        return self.index() & jnp.uint32(WARP_LANES - 1)

    def warp(self) -> jax.Array:
        """uint32[128]: number of the lane's warp in its warpgroup."""
        return self.index() >> jnp.uint32(5)

    def meeting(self, warpgroups: int) -> dict[str, Any]:
        """Scratch for `meet_all` and `collect`, by name."""
        if not self.interpret or warpgroups == 1:
            return {}
        names = ("met", "collected")
        return {name: plgpu.Barrier(num_arrivals=warpgroups) for name in names}

    def meet_all(self, refs: dict[str, Any], warpgroups: int) -> None:
        """Waits for all lanes of the CTA, so that they may read what others wrote to shared memory.

        There is no fence for what the copy engine or the wide matrix unit would read, as it would
        wait for weights that are on their way.

        Args:
          refs: the scratch.
          warpgroups: of the CTA.
        """
        if warpgroups == 1:
            self.meet()
        elif self.interpret:
            plgpu.barrier_arrive(refs["met"])
            plgpu.barrier_wait(refs["met"])
        else:
            _cta_barrier("sync", warpgroups)

    def collect(self, refs: dict[str, Any], mine: jax.Array, warpgroups: int) -> None:
        """As `meet_all`, but only warpgroup 0 waits.

        Args:
          refs, warpgroups: as in `meet_all`.
          mine: the warpgroup's number.
        """
        if warpgroups == 1:
            self.meet()
            return
        if self.interpret:
            plgpu.barrier_arrive(refs["collected"])
            pl.when(mine == 0)(lambda: plgpu.barrier_wait(refs["collected"]))
            return
        pl.when(mine == 0)(lambda: _cta_barrier("sync", warpgroups))
        pl.when(mine != 0)(lambda: _cta_barrier("arrive", warpgroups))

    def pair(self, low: jax.Array, high: jax.Array) -> jax.Array:
        """uint32[128]: two float32[128] rounded to bf16, one in each half."""
        if self.interpret:
            both = jnp.stack([low, high], axis=-1).astype(jnp.bfloat16)
            return jax.lax.bitcast_convert_type(both, jnp.uint32)
        return in_lanes(lambda *values: [_PAIR(*values)], [low, high], 1)[0]

    def sum_in_warp(self, values: jax.Array) -> jax.Array:
        """float32[128]: in each lane the sum of its warp's values float32[128]."""
        if self.interpret:
            return jnp.repeat(values.reshape(WARPS, WARP_LANES).sum(axis=1), WARP_LANES)

        @plgpu.inline_mgpu(arg_types=(LANE_LAYOUT,), return_type=_FLOATS_TYPE)
        def apply(_: Any, values: Any) -> Any:
            total = scalar(values.registers.item())
            for distance in (16, 8, 4, 2, 1):
                total = arith.addf(total, mgpu_utils.shfl_bfly(total, distance))
            return from_scalar(total, is_signed=None)

        return apply(values)

    def transpose(self, words: Sequence[jax.Array]) -> list[jax.Array]:
        """Transposes 4 words of each of 4 neighbouring lanes: word i of lane j to word j of lane i.

        Args:
          words: uint32[128] each; every four of them are transposed by themselves.
        """
        if self.interpret:
            fours = jnp.stack(words).reshape(-1, 4, LANES // 4, 4)
            return list(fours.swapaxes(1, 3).reshape(-1, LANES))
        return in_lanes(
            lambda number, *values: emit_transpose(number, values),
            [self.index(), *words],
            len(words),
        )

    def decode(
        self,
        words: Sequence[jax.Array],
        record: Sequence[jax.Array],
        warp: jax.Array,
        bias: Sequence[jax.Array],
        size: int,
        width: int,
        compressed: jax.Array | None,
        order: Sequence[int],
    ) -> list[jax.Array]:
        """The 32 registers of each warp's part of a unit of its own.

        Args:
          words: of the `window` codec; or, where not `compressed`, 32 words of weights, of which
            the transpose in `order` is the registers.
          record: uint32[128] each: word 32 * i + l of the warp's escape record in lane l.
          warp: uint32[128], which of its unit's four warps each is.
          bias: row bases of even and odd registers, as in `window_layout.unpack`.
          size: RECORD.
          width: of the codec.
          compressed: uint32[128], the same for all of a warp; None where all are.
          order: of the transposed words, see `words`.
        """
        count, parts = window_layout.WORDS[width], len(record)
        if self.interpret:
            unpacked = jnp.stack(window_layout.unpack(words[:count], bias, width))
            decoded = _patch_warps(unpacked, jnp.stack(record), warp)
            if compressed is None:
                return decoded
            transposed = self.transpose(words)
            return [
                jnp.where(compressed != 0, one, transposed[place])
                for one, place in zip(decoded, order, strict=True)
            ]
        operands = [self.index(), warp, *bias, *record, *words]
        if compressed is not None:
            operands.append(compressed)

        def emit(number: ir.Value, warp: ir.Value, *rest: ir.Value) -> list[ir.Value]:
            bias, held, words = rest[:2], rest[2 : 2 + parts], list(rest[2 + parts :])

            def decoded() -> list[ir.Value]:
                unpacked = emit_unpack(words[:count], bias, width)
                return _emit_patch_warp(number, warp, held, unpacked, size)

            if compressed is None:
                return decoded()
            zero = constant(0)
            here = arith.cmpi(arith.CmpIPredicate.ne, words.pop(), zero)
            types = [word_type()] * window_layout.REGISTERS
            branch = scf.IfOp(here, types, has_else=True)
            with ir.InsertionPoint(branch.then_block):
                scf.yield_(decoded())
            with ir.InsertionPoint(branch.else_block):
                transposed = emit_transpose(number, words)
                scf.yield_([transposed[place] for place in order])
            return list(branch.results)

        return in_lanes(emit, operands, window_layout.REGISTERS)

    def patch_warp(
        self,
        registers: Sequence[jax.Array],
        record: Sequence[jax.Array],
        warp: jax.Array,
        size: int,
    ) -> list[jax.Array]:
        """`patch`, where each warp decodes one warp's part of a unit of its own.

        Args:
          registers: 32 words a lane, decoded with digit 0 where a weight escaped.
          record, warp, size: as in `decode`.
        """
        if self.interpret:
            return _patch_warps(jnp.stack(registers), jnp.stack(record), warp)
        parts = len(record)

        def emit(number: ir.Value, warp: ir.Value, *rest: ir.Value) -> list[ir.Value]:
            held, values = rest[:parts], rest[parts:]
            # What is looked up ahead takes the registers of a fifth warpgroup.
            return _emit_patch_warp(number, warp, held, values, size, ahead=0)

        operands = [self.index(), warp, *record, *registers]
        return in_lanes(emit, operands, len(registers))

    def load_record(self, ref: Any, number: jax.Array, size: int) -> list[jax.Array]:
        """Escape record `number` (uint32[128]) of a flat ref, 32 words at a time, as for `decode`.

        Args:
          ref: uint32 ref in device memory, records one after another.
          number: the same for all of a warp.
          size: RECORD; lanes beyond it have its last word.
        """
        found: list[jax.Array] = []
        for start in range(0, size, WARP_LANES):
            inside = jnp.minimum(self.lane() + jnp.uint32(start), jnp.uint32(size - 1))
            found += self.load(ref, number * jnp.uint32(size) + inside, [0])
        return found

    def multiply_in_warp(
        self, sums: Sequence[jax.Array], weights: Sequence[jax.Array], x: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """Adds products of each warp's 16 rows of weights and 8 rows of x (`mma.m16n8k16`).

        Args:
          sums: 4 of float32[128]: lane l of a warp has rows l//4 (the first two) and l//4 + 8 of
            the weights, rows 2*(l%4) and the next one of x.
          weights: 32 registers of two bf16, as in `window_layout`.
          x: 16 registers of two bf16: lane l has columns 8*i + 2*(l%4) and the next one of x's row
            l//4.
        """
        if self.interpret:
            return _multiply_in_warp(sums, weights, x)

        @plgpu.inline_mgpu(
            arg_types=(LANE_LAYOUT,) * (4 + len(weights) + len(x)), return_type=[_FLOATS_TYPE] * 4
        )
        def apply(_: Any, *arrays: Any) -> Any:
            values = [scalar(array.registers.item()) for array in arrays]
            totals, weights, x = values[:4], values[4:36], values[36:]
            for part in range(8):
                totals = mgpu_utils.inline_ptx(
                    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                    "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
                    *weights[4 * part : 4 * part + 4],
                    *x[2 * part : 2 * part + 2],
                    *totals,
                    result_types=[ir.F32Type.get()] * 4,
                    has_side_effects=True,
                    convergent=True,
                )
            return [from_scalar(total, is_signed=None) for total in totals]

        return list(apply(*sums, *weights, *x))


def _cta_barrier(operation: str, warpgroups: int) -> None:
    """Named barrier of all of a CTA's warps, which waits ("sync") or does not ("arrive")."""

    in_all_lanes(f"barrier.cta.{operation}.aligned {_CTA_BARRIER}, {LANES * warpgroups};")


def _emit_patch_warp(
    number: ir.Value,
    warp: ir.Value,
    record: Sequence[ir.Value],
    registers: Sequence[ir.Value],
    size: int,
    ahead: int = 1,
) -> list[ir.Value]:
    """Emits `Warps.patch_warp`; `number` is the lane's in the warpgroup."""
    lane = arith.andi(number, constant(WARP_LANES - 1))
    read = _reader(record)

    def header_at(index: ir.Value) -> ir.Value:
        # It is in the first words of all.
        return shuffle(record[0], index)

    def entry_at(position: ir.Value) -> ir.Value:
        header = constant(window_records.RECORD_HEADER)
        both = read(arith.addi(header, shifted(position, 1)))
        odd = arith.shli(field(position, 0, 1), constant(4))
        return arith.shrui(both, odd)

    return emit_patch(header_at, entry_at, warp, lane, *registers, record=size, ahead=ahead)


def _reader(record: Sequence[ir.Value]) -> Callable[[ir.Value], ir.Value]:
    """Reads a record of which each lane holds one word of every 32."""

    def read(index: ir.Value) -> ir.Value:
        found = shuffle(record[0], index)
        for part in range(1, len(record)):
            first = constant(WARP_LANES * part)
            later = arith.cmpi(arith.CmpIPredicate.uge, index, first)
            found = arith.select(later, shuffle(record[part], index), found)
        return found

    return read


def _patch_warps(registers: jax.Array, record: jax.Array, warp: jax.Array) -> list[jax.Array]:
    """`patch_warp` of registers uint32[32, 128] for the interpreter: all warps' records at once."""
    first = WARP_LANES * jnp.arange(WARPS, dtype=jnp.uint32)[:, None]
    records = record.reshape(-1, WARPS, WARP_LANES).swapaxes(0, 1).reshape(WARPS, -1)
    place, difference = window_records.read(records)
    register, lane, half = place // (2 * LANES), place // 2 % LANES, place % 2
    here = register * (2 * LANES) + 2 * (lane % WARP_LANES + first) + half
    is_mine = (lane // WARP_LANES == warp[::WARP_LANES, None]) & (register < registers.shape[0])
    here = jnp.where(is_mine, here, jnp.uint32(2 * registers.size))
    return list(window.patch(registers, here.reshape(-1), difference.reshape(-1)))


def _multiply_in_warp(
    sums: Sequence[jax.Array], weights: Sequence[jax.Array], x: Sequence[jax.Array]
) -> list[jax.Array]:
    def bf16(words: Sequence[jax.Array], halves: int) -> jax.Array:
        """float32[warps, 8 * halves, 128] of words of which neighbouring ones are 8 rows apart."""
        apart = jnp.stack(words).reshape(-1, halves, WARPS, 8, 4)
        both = jax.lax.bitcast_convert_type(apart.transpose(2, 1, 3, 0, 4), jnp.bfloat16)
        return both.reshape(WARPS, 8 * halves, -1).astype(jnp.float32)

    products = jnp.einsum("wrk,wnk->wrn", bf16(weights, 2), bf16(x, 1), precision="highest")
    by_lane = products.reshape(WARPS, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, LANES)
    return [total + more for total, more in zip(sums, by_lane, strict=True)]
