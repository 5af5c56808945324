"""What warps need that go their own ways: loads and stores lane by lane, sums in registers.

As in `lanes`, each method has two forms: inline Mosaic GPU code, and plain JAX.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, llvm, scf
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window, window_layout, window_records
from kernels_pallas.emit import (
    LANE_LAYOUT,
    LANES,
    emit_patch,
    emit_transpose,
    emit_unpack,
    from_scalar,
    ptx,
    scalar,
    shuffle,
)
from kernels_pallas.lanes import Lanes

WARP_LANES = 32
WARPS = LANES // WARP_LANES
# One uint32 a lane.
_WORDS = plgpu.ShapeDtypeStruct((LANES,), jnp.uint32, layout=LANE_LAYOUT)


def _word() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def _float_from_scalar(value: ir.Value) -> Any:
    return from_scalar(value, is_signed=None)


def _address(ref: ir.Value, index: ir.Value) -> ir.Value:
    """Of 32-bit word `index` of a ref in device memory."""
    long = ir.IntegerType.get_signless(64)
    offset = arith.shli(arith.extui(long, index), arith.constant(long, 2))
    return arith.addi(llvm.ptrtoint(long, mgpu_utils.memref_ptr(ref)), offset)


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

    def emit(self, address: ir.Value, count: int) -> list[ir.Value]:
        """Emits the loads, and zeros to make so many."""
        suffix, names = ("b32", "$0") if self.vector == 1 else ("v4.b32", "{$0, $1, $2, $3}")
        found: list[ir.Value] = []
        for offset in self.offsets:
            words = mgpu_utils.inline_ptx(
                f"ld.global.nc.{suffix} {names}, [${self.vector}+{4 * offset}];",
                address,
                result_types=[_word()] * self.vector,
            )
            found += words
        return found + [arith.constant(_word(), 0)] * (count - len(found))


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
        words = [_WORDS] * count
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
                address = _address(ref, scalar(index.registers.item()))
                if number == len(choices) - 1:
                    return choice.emit(address, count)
                zero = arith.constant(_word(), 0)
                here = arith.cmpi(arith.CmpIPredicate.ne, flags[number], zero)
                branch = scf.IfOp(here, [_word()] * count, has_else=True)
                with ir.InsertionPoint(branch.then_block):
                    scf.yield_(choice.emit(address, count))
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
    ) -> None:
        """Stores lanes' words where `where` (uint32[128]) is not 0; not for the interpreter.

        Args:
          ref, index, offsets: as in `load`.
          words: uint32[128], one for each offset.
          where: which lanes store.
        """
        self._store(ref, index, offsets, words, where, transposed=False)

    def store_transposed(
        self,
        ref: Any,
        index: jax.Array,
        offsets: Sequence[int],
        words: Sequence[jax.Array],
        where: jax.Array,
    ) -> None:
        """`store` of the transpose of words, four for each offset; all of a warp or none."""
        self._store(ref, index, offsets, words, where, transposed=True)

    def _store(
        self,
        ref: Any,
        index: jax.Array,
        offsets: Sequence[int],
        words: Sequence[jax.Array],
        where: jax.Array,
        transposed: bool,
    ) -> None:
        suffix, names = ("v4.b32", "{$1, $2, $3, $4}") if transposed else ("b32", "$1")

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), *(LANE_LAYOUT,) * (3 + len(words))))
        def apply(_: Any, ref: ir.Value, *arrays: Any) -> None:
            number, index, mask, *values = (scalar(array.registers.item()) for array in arrays)
            zero = arith.constant(_word(), 0)
            branch = scf.IfOp(arith.cmpi(arith.CmpIPredicate.ne, mask, zero))
            with ir.InsertionPoint(branch.then_block):
                address = _address(ref, index)
                if transposed:
                    values = emit_transpose(number, values)
                width = len(values) // len(offsets)
                for each, offset in enumerate(offsets):
                    mgpu_utils.inline_ptx(
                        f"st.global.{suffix} [$0+{4 * offset}], {names};",
                        address,
                        *values[width * each : width * (each + 1)],
                        has_side_effects=True,
                    )
                scf.yield_([])

        apply(ref, self.index(), index, where, *words)

    def transpose(self, words: Sequence[jax.Array]) -> list[jax.Array]:
        """Transposes 4 words of each of 4 neighbouring lanes: word i of lane j to word j of lane i.

        Args:
          words: uint32[128] each; every four of them are transposed by themselves.
        """
        if self.interpret:
            fours = jnp.stack(words).reshape(-1, 4, LANES // 4, 4)
            return list(fours.swapaxes(1, 3).reshape(-1, LANES))
        results = [_WORDS] * len(words)

        @plgpu.inline_mgpu(arg_types=(LANE_LAYOUT,) * (1 + len(words)), return_type=results)
        def apply(_: Any, *arrays: Any) -> Any:
            number, *values = (scalar(array.registers.item()) for array in arrays)
            return [from_scalar(value) for value in emit_transpose(number, values)]

        return list(apply(self.index(), *words))

    def decode(
        self,
        words: Sequence[jax.Array],
        record: Sequence[jax.Array],
        warp: jax.Array,
        bias: Sequence[jax.Array],
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
        registers = [_WORDS] * window_layout.REGISTERS
        operands = [self.index(), warp, *bias, *record, *words]
        if compressed is not None:
            operands.append(compressed)

        @plgpu.inline_mgpu(arg_types=(LANE_LAYOUT,) * len(operands), return_type=registers)
        def apply(_: Any, *arrays: Any) -> Any:
            values = [scalar(array.registers.item()) for array in arrays]
            (number, warp, *bias), rest = values[:4], values[4:]
            held, words = rest[:parts], rest[parts:]

            def decoded() -> list[ir.Value]:
                lane = arith.andi(number, arith.constant(_word(), WARP_LANES - 1))
                unpacked = emit_unpack(words[:count], bias, width)
                return emit_patch(_reader(held), warp, lane, *bias, *unpacked)

            if compressed is None:
                return [from_scalar(value) for value in decoded()]
            here = arith.cmpi(arith.CmpIPredicate.ne, words.pop(), arith.constant(_word(), 0))
            branch = scf.IfOp(here, [_word()] * len(registers), has_else=True)
            with ir.InsertionPoint(branch.then_block):
                scf.yield_(decoded())
            with ir.InsertionPoint(branch.else_block):
                transposed = emit_transpose(number, words)
                scf.yield_([transposed[place] for place in order])
            return [from_scalar(value) for value in branch.results]

        return list(apply(*operands))

    def patch_warp(
        self,
        registers: Sequence[jax.Array],
        record: Sequence[jax.Array],
        warp: jax.Array,
        bias: Sequence[jax.Array],
    ) -> list[jax.Array]:
        """`patch`, where each warp decodes one warp's part of a unit of its own.

        Args:
          registers: 32 words a lane, decoded with digit 0 where a weight escaped.
          record, warp, bias: as in `decode`.
        """
        if self.interpret:
            return _patch_warps(jnp.stack(registers), jnp.stack(record), warp)
        parts, results = len(record), [_WORDS] * len(registers)
        operands = [self.index(), warp, *bias, *record, *registers]

        @plgpu.inline_mgpu(arg_types=(LANE_LAYOUT,) * len(operands), return_type=results)
        def apply(_: Any, *arrays: Any) -> Any:
            values = [scalar(array.registers.item()) for array in arrays]
            (number, warp, *bias), rest = values[:4], values[4:]
            lane = arith.andi(number, arith.constant(_word(), WARP_LANES - 1))
            patched = emit_patch(_reader(rest[:parts]), warp, lane, *bias, *rest[parts:])
            return [from_scalar(value) for value in patched]

        return list(apply(*operands))

    def open_stream(self, stream: Any, position: jax.Array) -> tuple[jax.Array, ...]:
        """What `rans_steps` carries of each warp's stream from a position on, uint32[128] each.

        The warp's lanes hold 192 words of it, two in each of three registers, of which the last
        is asked for so early that it has come when its turn comes.

        Args:
          stream: uint16[LENGTH] ref in device memory, LENGTH even.
          position: uint32[128], the same for all of a warp: the first word's.

        Returns:
          place of the next word among those held; the three registers; which pair of words of
          the stream each lane will hold next.
        """
        words = _stream_pairs(stream)
        first = jnp.minimum(position >> 1, jnp.uint32(words)) + self.lane()
        held = [self._pair_of(stream, first + jnp.uint32(WARP_LANES * part)) for part in range(3)]
        return (position & jnp.uint32(1), *held, first + jnp.uint32(3 * WARP_LANES))

    def _pair_of(self, stream: Any, number: jax.Array) -> jax.Array:
        """uint32[128]: pairs of words of a stream; the last pair for any number beyond."""
        last = jnp.uint32(_stream_pairs(stream) - 1)
        return self.load(stream, jnp.minimum(number, last), [0])[0]

    def rans_steps(
        self, state: jax.Array, window: Sequence[jax.Array], table: Any, stream: Any, steps: int
    ) -> tuple[jax.Array, tuple[jax.Array, ...], list[jax.Array]]:
        """Decodes some steps of `rans_coder`, each warp of its own stream.

        Args:
          state: uint32[128].
          window: of the stream, as `open_stream` or the steps before leave it.
          table: uint32 ref in shared memory, 2**bits long in all.
          stream: uint16[LENGTH] ref in device memory, of which nothing beyond is read.
          steps: how many.

        Returns:
          state and window afterwards, and each step's table entries, uint32[128]: the symbol is
          their lowest byte.
        """
        bits = int(np.prod(table.shape)).bit_length() - 1
        if self.interpret:
            return _rans_steps(self, state, window, table[...].reshape(-1), stream, steps, bits)
        pairs = _stream_pairs(stream)

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), plgpu.RefType(), *(LANE_LAYOUT,) * 6),
            return_type=[_WORDS] * (6 + steps),
        )
        def apply(_: Any, table: ir.Value, stream: ir.Value, *arrays: Any) -> Any:
            carried = [scalar(array.registers.item()) for array in arrays]
            long = ir.IntegerType.get_signless(64)
            table = llvm.ptrtoint(_word(), mgpu_utils.memref_ptr(table))
            stream = llvm.ptrtoint(long, mgpu_utils.memref_ptr(stream))
            lower = ptx("mov.u32 $0, %lanemask_lt;")()
            entries = []
            for _ in range(steps):
                entry, *carried = mgpu_utils.inline_ptx(
                    _RANS_STEP % {"mask": (1 << bits) - 1, "bits": bits, "pairs": pairs},
                    *carried,
                    table,
                    stream,
                    lower,
                    result_types=[_word()] * 7,
                    has_side_effects=True,
                    convergent=True,
                )
                entries.append(entry)
            return [from_scalar(value) for value in (*carried, *entries)]

        found = apply(table, stream, state, *window)
        return found[0], tuple(found[1:6]), list(found[6:])

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
        floats = [plgpu.ShapeDtypeStruct((LANES,), jnp.float32, layout=LANE_LAYOUT)] * 4

        @plgpu.inline_mgpu(
            arg_types=(LANE_LAYOUT,) * (4 + len(weights) + len(x)), return_type=floats
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


# One step of one lane. Results: $0 the entry; $1 the state; $2 to $6 the window of the stream.
# Arguments: $7 to $12 state and window, $13 and $14 the addresses of table and stream, $15 the
# mask of lower lanes. A warp whose next word is beyond the first of its three registers moves on.
_RANS_STEP = """{
    .reg .b32 a, b, f, x, m, r, w; .reg .b64 p; .reg .pred need, on, more;
    and.b32 a, $7, %(mask)d; shl.b32 a, a, 2; add.u32 a, a, $13; ld.shared.b32 $0, [a];
    bfe.u32 f, $0, 8, 12; shr.b32 a, $0, 20; shr.b32 x, $7, %(bits)d; mad.lo.u32 x, f, x, a;
    setp.lt.u32 need, x, 65536; vote.sync.ballot.b32 m, need, 0xffffffff;
    and.b32 r, m, $15; popc.b32 r, r; add.u32 r, r, $8; shr.b32 b, r, 1;
    shfl.sync.idx.b32 a, $9, b, 0x1f, 0xffffffff; shfl.sync.idx.b32 b, $10, b, 0x1f, 0xffffffff;
    setp.ge.u32 on, r, 64; selp.b32 w, b, a, on;
    and.b32 r, r, 1; mad.lo.u32 r, r, 0x22, 0x4410; prmt.b32 w, w, 0, r;
    mov.b32 $1, x; @need prmt.b32 $1, w, x, 0x5410;
    popc.b32 m, m; add.u32 m, m, $8; setp.ge.u32 on, m, 64;
    selp.b32 $3, $10, $9, on; selp.b32 $4, $11, $10, on;
    and.b32 $2, m, 63; mov.b32 $5, $11; mov.b32 $6, $12;
    setp.lt.and.u32 more, $12, %(pairs)d, on;
    mul.wide.u32 p, $12, 4; add.u64 p, p, $14; @more ld.global.nc.b32 $5, [p];
    @on add.u32 $6, $12, 32; }"""


def _stream_pairs(stream: Any) -> int:
    return int(stream.shape[0]) // 2


def _rans_steps(
    warps: Warps,
    state: jax.Array,
    window: Sequence[jax.Array],
    table: jax.Array,
    stream: Any,
    steps: int,
    bits: int,
) -> tuple[jax.Array, tuple[jax.Array, ...], list[jax.Array]]:
    place, first, second, third, following = window
    entries = []
    for _ in range(steps):
        entry = table[state & jnp.uint32((1 << bits) - 1)]
        entries.append(entry)
        state = ((entry >> 8) & 0xFFF) * (state >> bits) + (entry >> 20)
        need = (state < 1 << 16).reshape(WARPS, WARP_LANES)
        count = jnp.cumsum(need, axis=-1, dtype=jnp.uint32)
        number = place + (count - need).reshape(-1)
        held = jnp.concatenate([each.reshape(WARPS, WARP_LANES) for each in (first, second)], 1)
        pair = jnp.take_along_axis(held, (number >> 1).reshape(WARPS, WARP_LANES), axis=1)
        word = (pair.reshape(-1) >> 16 * (number & 1)) & 0xFFFF
        state = jnp.where(need.reshape(-1), state << 16 | word, state)
        place += jnp.repeat(count[:, -1], WARP_LANES)
        on = place >= 2 * WARP_LANES
        place = place & (2 * WARP_LANES - 1)
        first, second = jnp.where(on, second, first), jnp.where(on, third, second)
        more = on & (following < _stream_pairs(stream))
        third = jnp.where(more, warps._pair_of(stream, following), third)
        following = jnp.where(on, following + WARP_LANES, following)
    return state, (place, first, second, third, following), entries


def _reader(record: Sequence[ir.Value]) -> Callable[[ir.Value], ir.Value]:
    """Reads a record of which each lane holds one word of every 32."""

    def read(index: ir.Value) -> ir.Value:
        found = shuffle(record[0], index)
        for part in range(1, len(record)):
            first = arith.constant(_word(), WARP_LANES * part)
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
