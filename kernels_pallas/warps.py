"""What warps need that go their own ways: loads and stores lane by lane, sums in registers.

As in `lanes`, each method has two forms: inline Mosaic GPU code, and plain JAX.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, scf
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window, window_layout, window_records
from kernels_pallas.emit import (
    LANE_LAYOUT,
    LANES,
    address,
    emit_patch,
    emit_transpose,
    emit_unpack,
    from_scalar,
    ptx,
    scalar,
    shuffle,
    word_type,
)
from kernels_pallas.lanes import WORDS_TYPE, Lanes, in_lanes

WARP_LANES = 32
WARPS = LANES // WARP_LANES
# Of a lane, see `Warps.multiply_in_warp`.
SUMS = 4
# One float32 a lane.
_FLOATS_TYPE = plgpu.ShapeDtypeStruct((LANES,), jnp.float32, layout=LANE_LAYOUT)
_PAIR = ptx("cvt.rn.bf16x2.f32 $0, $2, $1;")


def _address(ref: ir.Value, index: ir.Value) -> ir.Value:
    """Of 32-bit word `index` of a ref in device memory."""
    long = ir.IntegerType.get_signless(64)
    offset = arith.shli(arith.extui(long, index), arith.constant(long, 2))
    return arith.addi(address(ref), offset)


def _as_words(values: jax.Array) -> jax.Array:
    """Flat uint32 of uint32, int32 or pairs of bf16 or uint16."""
    if values.dtype.itemsize == 2:
        values = values.reshape(-1, 2)
    return jax.lax.bitcast_convert_type(values, jnp.uint32).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `Warps.load` takes."""

    ref: Any
    index: jax.Array
    offsets: tuple[int, ...]
    vector: int

    def read(self, count: int) -> list[jax.Array]:
        """The words, and zeros to make so many, for the interpreter."""
        flat = _as_words(self.ref[...])
        places = [offset + part for offset in self.offsets for part in range(self.vector)]
        found = [flat[self.index + jnp.uint32(place)] for place in places]
        return found + [jnp.zeros_like(self.index)] * (count - len(found))

    def emit(self, start: ir.Value, count: int) -> list[ir.Value]:
        """Emits the loads, and zeros to make so many."""
        suffix, names = ("b32", "$0") if self.vector == 1 else ("v4.b32", "{$0, $1, $2, $3}")
        found: list[ir.Value] = []
        for offset in self.offsets:
            words = mgpu_utils.inline_ptx(
                f"ld.global.nc.{suffix} {names}, [${self.vector}+{4 * offset}];",
                start,
                result_types=[word_type()] * self.vector,
            )
            found += words
        return found + [arith.constant(word_type(), 0)] * (count - len(found))


@dataclasses.dataclass(frozen=True)
class Warps(Lanes):
    """Operations in which a warp's lanes share something, but the warpgroup's warps need not."""

    def lane(self) -> jax.Array:
        """uint32[128]: number of the lane in its warp."""
        return self.index() & jnp.uint32(WARP_LANES - 1)

    def warp(self) -> jax.Array:
        """uint32[128]: number of the lane's warp in its warpgroup."""
        return self.index() >> jnp.uint32(5)

    def load(
        self, ref: Any, index: jax.Array, offsets: Sequence[int], vector: int = 1
    ) -> list[jax.Array]:
        """Each lane's words of a ref in device memory that nobody writes meanwhile.

        Args:
          ref: uint32, int32, or bf16 or uint16 (two a word), of any shape.
          index: uint32[128], a word's number in the flat ref.
          offsets: in words from `index`, of each load.
          vector: words of each load, 1 or 4; then index and offsets are multiples of it.
        """
        return self.load_one_of(
            [Choice(ref, index, tuple(offsets), vector)], [], vector * len(offsets)
        )

    def load_one_of(
        self, choices: Sequence["Choice"], chosen: Sequence[jax.Array], count: int
    ) -> list[jax.Array]:
        """`load` of one of several refs, each warp's own choice.

        Args:
          choices: what may be loaded.
          chosen: uint32[128] for all but the last, not 0 where the warp's choice is this or an
            earlier one.
          count: words to return; after those of a shorter choice come zeros.
        """
        if self.interpret:
            *earlier, found = [choice.read(count) for choice in choices]
            for words, here in zip(reversed(earlier), reversed(chosen), strict=True):
                pairs = zip(words, found, strict=True)
                found = [jnp.where(here != 0, one, other) for one, other in pairs]
            return found
        words = [WORDS_TYPE] * count
        types = (
            *(plgpu.RefType(), LANE_LAYOUT) * len(choices),
            *(LANE_LAYOUT,) * len(chosen),
        )

        @plgpu.inline_mgpu(arg_types=types, return_type=words)
        def apply(_: Any, *arguments: Any) -> Any:
            flags = [scalar(flag.registers.item()) for flag in arguments[2 * len(choices) :]]

            def emit(number: int) -> list[ir.Value]:
                ref, index = arguments[2 * number : 2 * number + 2]
                choice = choices[number]
                start = _address(ref, scalar(index.registers.item()))
                if number == len(choices) - 1:
                    return choice.emit(start, count)
                zero = arith.constant(word_type(), 0)
                here = arith.cmpi(arith.CmpIPredicate.ne, flags[number], zero)
                branch = scf.IfOp(here, [word_type()] * count, has_else=True)
                with ir.InsertionPoint(branch.then_block):
                    scf.yield_(choice.emit(start, count))
                with ir.InsertionPoint(branch.else_block):
                    scf.yield_(emit(number + 1))
                return list(branch.results)

            return [from_scalar(word) for word in emit(0)]

        operands = [each for choice in choices for each in (choice.ref, choice.index)]
        return list(apply(*operands, *chosen))

    def store(
        self,
        ref: Any,
        index: jax.Array,
        offsets: Sequence[int],
        words: Sequence[jax.Array],
        where: jax.Array,
        transposed: bool = False,
    ) -> None:
        """Stores lanes' words where `where` (uint32[128]) is not 0; not for the interpreter.

        Args:
          ref, index, offsets: as in `load`.
          words: uint32[128], one for each offset, or four if `transposed`.
          where: which lanes store; if `transposed`, all of a warp or none.
          transposed: whether to store the transpose of the words, see `transpose`.
        """
        suffix, names = ("v4.b32", "{$1, $2, $3, $4}") if transposed else ("b32", "$1")

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), *(LANE_LAYOUT,) * (3 + len(words))))
        def apply(_: Any, ref: ir.Value, *arrays: Any) -> None:
            number, index, mask, *values = (scalar(array.registers.item()) for array in arrays)
            zero = arith.constant(word_type(), 0)
            branch = scf.IfOp(arith.cmpi(arith.CmpIPredicate.ne, mask, zero))
            with ir.InsertionPoint(branch.then_block):
                start = _address(ref, index)
                if transposed:
                    values = emit_transpose(number, values)
                width = len(values) // len(offsets)
                for each, offset in enumerate(offsets):
                    mgpu_utils.inline_ptx(
                        f"st.global.{suffix} [$0+{4 * offset}], {names};",
                        start,
                        *values[width * each : width * (each + 1)],
                        has_side_effects=True,
                    )
                scf.yield_([])

        apply(ref, self.index(), index, where, *words)

    def store_shared(self, ref: Any, index: jax.Array, words: Sequence[jax.Array]) -> None:
        """Stores lanes' neighbouring words from `index` on, uint32[128] each, in shared memory."""

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), *(LANE_LAYOUT,) * (1 + len(words))))
        def apply(_: Any, ref: ir.Value, *arrays: Any) -> None:
            index, *values = (scalar(array.registers.item()) for array in arrays)
            offset = arith.shli(index, arith.constant(word_type(), 2))
            start = arith.addi(address(ref, shared=True), offset)
            for number, value in enumerate(values):
                mgpu_utils.inline_ptx(
                    f"st.shared.b32 [$0+{4 * number}], $1;",
                    start,
                    value,
                    has_side_effects=True,
                )

        apply(ref, index, *words)

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

    def prefetch(self, ref: Any, number: jax.Array, start: int, size: int, share: int) -> None:
        """Asks the L2 cache for share `number` of bytes of a ref in device memory.

        Args:
          ref: of any shape.
          number: int32 scalar; shares beyond the last ask for nothing.
          start, size: of the bytes; multiples of 16.
          share: bytes of one, a multiple of 16.
        """
        if self.interpret:
            return

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), LANE_LAYOUT, LANE_LAYOUT))
        def apply(_: Any, ref: ir.Value, lane: Any, number: Any) -> None:
            word, long = word_type(), ir.IntegerType.get_signless(64)
            first = arith.muli(scalar(number.registers.item()), arith.constant(word, share))
            zero, end = arith.constant(word, 0), arith.constant(word, size)
            one_lane = arith.cmpi(arith.CmpIPredicate.eq, scalar(lane.registers.item()), zero)
            some = arith.cmpi(arith.CmpIPredicate.ult, first, end)
            branch = scf.IfOp(arith.andi(one_lane, some))
            with ir.InsertionPoint(branch.then_block):
                offset = arith.addi(arith.extui(long, first), arith.constant(long, start))
                mgpu_utils.inline_ptx(
                    "cp.async.bulk.prefetch.L2.global [$0], $1;",
                    arith.addi(address(ref), offset),
                    arith.minui(arith.constant(word, share), arith.subi(end, first)),
                    has_side_effects=True,
                )
                scf.yield_([])

        apply(ref, self.index(), self.in_each(number))

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
                return _emit_patch_warp(number, warp, bias, held, unpacked, size)

            if compressed is None:
                return decoded()
            zero = arith.constant(word_type(), 0)
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
        bias: Sequence[jax.Array],
        size: int,
    ) -> list[jax.Array]:
        """`patch`, where each warp decodes one warp's part of a unit of its own.

        Args:
          registers: 32 words a lane, decoded with digit 0 where a weight escaped.
          record, warp, bias, size: as in `decode`.
        """
        if self.interpret:
            return _patch_warps(jnp.stack(registers), jnp.stack(record), warp)
        parts = len(record)

        def emit(number: ir.Value, warp: ir.Value, *rest: ir.Value) -> list[ir.Value]:
            held, values = rest[2 : 2 + parts], rest[2 + parts :]
            # What is looked up ahead takes the registers of a fifth warpgroup.
            return _emit_patch_warp(number, warp, rest[:2], held, values, size, ahead=0)

        operands = [self.index(), warp, *bias, *record, *registers]
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


def _emit_patch_warp(
    number: ir.Value,
    warp: ir.Value,
    bias: Sequence[ir.Value],
    record: Sequence[ir.Value],
    registers: Sequence[ir.Value],
    size: int,
    ahead: int | None = None,
) -> list[ir.Value]:
    """Emits `Warps.patch_warp`; `number` is the lane's in the warpgroup."""
    lane = arith.andi(number, arith.constant(word_type(), WARP_LANES - 1))
    held = _reader(record)
    return emit_patch(held, warp, lane, *bias, *registers, record=size, ahead=ahead)


def _reader(record: Sequence[ir.Value]) -> Callable[[ir.Value], ir.Value]:
    """Reads a record of which each lane holds one word of every 32."""

    def read(index: ir.Value) -> ir.Value:
        found = shuffle(record[0], index)
        for part in range(1, len(record)):
            first = arith.constant(word_type(), WARP_LANES * part)
            later = arith.cmpi(arith.CmpIPredicate.uge, index, first)
            found = arith.select(later, shuffle(record[part], index), found)
        return found

    return read


def _patch_warps(registers: jax.Array, record: jax.Array, warp: jax.Array) -> list[jax.Array]:
    nowhere = jnp.uint32(2 * registers.size)
    for mine in range(WARPS):
        first = WARP_LANES * mine
        place, exponent = window_records.read(record[:, first : first + WARP_LANES].reshape(-1))
        register, lane, half = place // (2 * LANES), place // 2 % LANES, place % 2
        here = register * (2 * LANES) + 2 * (lane % WARP_LANES + first) + half
        is_mine = (lane // WARP_LANES == warp[first]) & (register < registers.shape[0])
        registers = window.patch(registers, jnp.where(is_mine, here, nowhere), exponent)
    return list(registers)


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
