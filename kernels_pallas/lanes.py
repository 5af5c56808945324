"""What the kernels need of a GPU lane beyond Pallas: a few instructions, quarantined here.

Each method works on one uint32 per lane of a warpgroup (arrays of shape [128]) and has two
forms: inline Mosaic GPU code, and plain JAX for the interpreter, which cannot run inline code.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, memref, scf, vector
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window, window_layout
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS

LANES = window_layout.LANES
SWIZZLE_TRANSFORMS = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
LANE_LAYOUT = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)


def _scalar(register: ir.Value) -> ir.Value:
    first = ir.DenseI64ArrayAttr.get([0])
    return vector.extract(register, dynamic_position=[], static_position=first)


def _from_scalar(value: ir.Value) -> Any:
    word = ir.IntegerType.get_signless(32)
    register = vector.broadcast(ir.VectorType.get((1,), word), value)
    registers = np.array([register], dtype=object)
    return mgpu.FragmentedArray(
        _registers=registers, _layout=LANE_LAYOUT.to_mgpu(), _is_signed=False
    )


def _per_lane(emit: Callable[..., ir.Value], *operands: jax.Array) -> jax.Array:
    """Applies `emit` (i32 values to one i32 value) to every lane."""

    @plgpu.inline_mgpu(
        arg_types=(LANE_LAYOUT,) * len(operands),
        return_type=plgpu.ShapeDtypeStruct((LANES,), jnp.uint32, layout=LANE_LAYOUT),
    )
    def apply(_: Any, *arrays: Any) -> Any:
        return _from_scalar(emit(*(_scalar(array.registers.item()) for array in arrays)))

    return apply(*operands)


def _ptx(template: str) -> Callable[..., ir.Value]:
    def emit(*operands: ir.Value) -> ir.Value:
        word = ir.IntegerType.get_signless(32)
        return mgpu_utils.inline_ptx(template, *operands, result_types=word)

    return emit


def _index(word: ir.Value) -> ir.Value:
    return arith.index_castui(ir.IndexType.get(), word)


def _field(bits: ir.Value, shift: int, mask: int) -> ir.Value:
    word = ir.IntegerType.get_signless(32)
    shifted = arith.shrui(bits, arith.constant(word, shift)) if shift else bits
    return arith.andi(shifted, arith.constant(word, mask))


def _exponent_mask(entry: jax.Array, bias: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Register number of an escape, and what turns its digit-0 exponent into the true one."""
    register = (entry >> window.REGISTER_SHIFT) & 31
    base = jnp.where(register & 1, bias[1], bias[0]) & jnp.uint32(0x7F80)
    exponent = (entry >> window.EXPONENT_SHIFT) << 7
    return register, (exponent ^ base) << ((entry & 1) * 16)


def _flat(ref: ir.Value) -> ir.Value:
    size = int(np.prod(ref.type.shape))
    return ref if len(ref.type.shape) == 1 else mgpu_utils.memref_reshape(ref, (size,))


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Lane operations, as instructions or (`interpret`) in plain JAX."""

    interpret: bool

    def index(self) -> jax.Array:
        """Lane number 0..127 in the warpgroup."""
        if self.interpret:
            return jnp.arange(LANES, dtype=jnp.uint32)
        return _per_lane(_ptx("{ .reg .u32 t; mov.u32 t, %tid.x; and.b32 $0, t, 127; }"))

    def spread(self, word: jax.Array, high: bool) -> jax.Array:
        """`window_layout.spread_bytes` in one instruction."""
        if self.interpret:
            return window_layout.spread_bytes(word, high)
        selector = "0x3322" if high else "0x1100"
        return _per_lane(_ptx(f"prmt.b32 $0, $1, 0, {selector};"), word)

    def merge(self, bytes_: jax.Array, exponents: jax.Array) -> jax.Array:
        """`window_layout.merge_exponent` in one instruction."""
        if self.interpret:
            return window_layout.merge_exponent(bytes_, exponents)
        return _per_lane(_ptx("lop3.b32 $0, 0x807f807f, $1, $2, 0xCA;"), bytes_, exponents)

    def gather(self, ref: Any, index: jax.Array) -> jax.Array:
        """Each lane's element of a uint8, uint32 or int32 ref, by flat index, as uint32."""
        if self.interpret:
            values = ref[...].reshape(-1)[index]
            if values.dtype == jnp.int32:
                return jax.lax.bitcast_convert_type(values, jnp.uint32)
            return values.astype(jnp.uint32)

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), LANE_LAYOUT),
            return_type=plgpu.ShapeDtypeStruct((LANES,), jnp.uint32, layout=LANE_LAYOUT),
        )
        def load(_: Any, ref: ir.Value, index: Any) -> Any:
            position = arith.index_castui(ir.IndexType.get(), _scalar(index.registers.item()))
            value = memref.load(_flat(ref), [position])
            word = ir.IntegerType.get_signless(32)
            return _from_scalar(value if value.type == word else arith.extui(word, value))

        return load(ref, index)

    def assemble(self, registers: Sequence[jax.Array]) -> jax.Array:
        """32 words a lane, two bf16 each in fragment order -> bf16[64, 128] in registers."""
        if self.interpret:
            both = jax.lax.bitcast_convert_type(jnp.stack(registers), jnp.bfloat16)
            return window_layout.row_order(both[None, None])
        layout = plgpu.Layout.WGMMA
        shape = (UNIT_ROWS, UNIT_COLUMNS)

        @plgpu.inline_mgpu(
            arg_types=(LANE_LAYOUT,) * len(registers),
            return_type=plgpu.ShapeDtypeStruct(shape, jnp.bfloat16, layout=layout),
        )
        def bitcast(_: Any, *words: Any) -> Any:
            tiled = layout.to_mgpu()
            out = np.empty(tiled.registers_shape(shape), dtype=object)
            pair = ir.VectorType.get((2,), ir.BF16Type.get())
            for word, position in zip(words, np.ndindex(*out.shape), strict=True):
                out[position] = vector.bitcast(pair, word.registers.item())
            return mgpu.FragmentedArray(_registers=out, _layout=tiled, _is_signed=None)

        return bitcast(*registers)

    def clear(self, ref: Any) -> None:
        """Zeroes a flat uint32 ref whose length is a multiple of 128."""
        if self.interpret:
            ref[...] = jnp.zeros(ref.shape, jnp.uint32)
            return

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), LANE_LAYOUT))
        def store(_: Any, ref: ir.Value, lane: Any) -> None:
            word = ir.IntegerType.get_signless(32)
            position = _scalar(lane.registers.item())
            for first in range(0, ref.type.shape[0], LANES):
                target = arith.addi(position, arith.constant(word, first))
                memref.store(arith.constant(word, 0), ref, [_index(target)])

        store(ref, self.index())

    def deliver(self, mailbox: Any, first: jax.Array, entry: jax.Array) -> None:
        """Puts each lane's escape (an entry of `window`'s lists, 0 for none) before its owner.

        It goes to element `first + 128 * round + owner` of the flat uint32 ref `mailbox`.
        """
        if self.interpret:
            round_ = (entry >> window.ROUND_SHIFT) & 0xFF
            target = first + round_ * LANES + ((entry >> window.LANE_SHIFT) & (LANES - 1))
            valid = (entry & window.VALID) != 0
            target = jnp.where(valid, target, jnp.uint32(mailbox.shape[0]))
            mailbox[...] = mailbox[...].at[target].set(entry, mode="drop")
            return

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), LANE_LAYOUT, LANE_LAYOUT))
        def store(_: Any, mailbox: ir.Value, first: Any, entry: Any) -> None:
            bits = _scalar(entry.registers.item())
            valid = arith.trunci(ir.IntegerType.get_signless(1), _field(bits, 15, 1))
            branch = scf.IfOp(valid)
            with ir.InsertionPoint(branch.then_block):
                word = ir.IntegerType.get_signless(32)
                row = arith.shli(_field(bits, window.ROUND_SHIFT, 0xFF), arith.constant(word, 7))
                owner = _field(bits, window.LANE_SHIFT, LANES - 1)
                target = arith.addi(_scalar(first.registers.item()), arith.addi(row, owner))
                memref.store(bits, mailbox, [_index(target)])
                scf.yield_([])

        store(mailbox, first, entry)

    def patch(
        self,
        registers: Sequence[jax.Array],
        mailbox: Any,
        first: jax.Array,
        bias: Sequence[jax.Array],
    ) -> list[jax.Array]:
        """Gives escaped weights their exponents and empties the mailbox.

        Args:
          registers: 32 words a lane, decoded with digit 0 where a weight escaped.
          mailbox: flat uint32 ref; lane l's escapes are at `first + l`, `first + 128 + l` and so
            on, up to a 0.
          first: where the mail of these registers begins.
          bias: row bases of even and odd registers, as in `window_layout.unpack`.
        """
        if self.interpret:
            stacked = jnp.stack(registers)
            number = jnp.arange(len(registers), dtype=jnp.uint32)[:, None]
            for round_ in range(window.MAX_ROUNDS):
                place = first + jnp.uint32(round_ * LANES) + self.index()
                entry = mailbox[...][place]
                register, mask = _exponent_mask(entry, bias)
                stacked = jnp.where((number == register) & (entry != 0), stacked ^ mask, stacked)
                mailbox[...] = mailbox[...].at[place].set(jnp.uint32(0))
            return list(stacked)

        count = len(registers)
        words = [plgpu.ShapeDtypeStruct((LANES,), jnp.uint32, layout=LANE_LAYOUT)] * count

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), *(LANE_LAYOUT,) * (count + 3)), return_type=words
        )
        def apply(_: Any, mailbox: ir.Value, *arrays: Any) -> Any:
            word = ir.IntegerType.get_signless(32)
            zero, one = arith.constant(word, 0), arith.constant(word, 1)
            position, even, odd, *values = (_scalar(array.registers.item()) for array in arrays)
            types = [word] * (count + 2)
            loop = scf.WhileOp(types, [position, zero, *values])
            before = ir.Block.create_at_start(loop.before, types)
            with ir.InsertionPoint(before):
                position, _, *values = before.arguments
                entry = memref.load(mailbox, [_index(position)])
                # Warps go on independently: each stops when none of its lanes has mail left.
                left = mgpu_utils.inline_ptx(
                    "{ .reg .pred p; setp.ne.u32 p, $1, 0; "
                    "vote.sync.any.pred p, p, 0xffffffff; selp.u32 $0, 1, 0, p; }",
                    entry,
                    result_types=word,
                    has_side_effects=True,
                    convergent=True,
                )
                more = arith.cmpi(arith.CmpIPredicate.ne, left, zero)
                scf.condition(more, [position, entry, *values])
            after = ir.Block.create_at_start(loop.after, types)
            with ir.InsertionPoint(after):
                position, entry, *values = after.arguments
                memref.store(zero, mailbox, [_index(position)])
                register = _field(entry, window.REGISTER_SHIFT, 31)
                parity = arith.cmpi(arith.CmpIPredicate.ne, arith.andi(register, one), zero)
                base = arith.andi(arith.select(parity, odd, even), arith.constant(word, 0x7F80))
                exponent = arith.shli(
                    _field(entry, window.EXPONENT_SHIFT, 0xFF), arith.constant(word, 7)
                )
                high = arith.shli(_field(entry, 0, 1), arith.constant(word, 4))
                mask = arith.shli(arith.xori(exponent, base), high)
                valid = arith.cmpi(arith.CmpIPredicate.ne, entry, zero)
                mask = arith.select(valid, mask, zero)
                patched = []
                for number, value in enumerate(values):
                    here = arith.cmpi(
                        arith.CmpIPredicate.eq, register, arith.constant(word, number)
                    )
                    patched.append(arith.xori(value, arith.select(here, mask, zero)))
                following = arith.addi(position, arith.constant(word, LANES))
                scf.yield_([following, zero, *patched])
            return [_from_scalar(value) for value in list(loop.results)[2:]]

        return list(apply(mailbox, first + self.index(), *bias, *registers))

    def store_columns(self, out: Any, sums: jax.Array, columns: int) -> None:
        """Writes the first columns of float32[64, n] sums, transposed, to a [columns, 64] ref."""
        if self.interpret:
            out[...] = sums[:, :columns].T
            return
        layout = plgpu.Layout.WGMMA

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), layout, LANE_LAYOUT))
        def store(_: Any, out: ir.Value, sums: Any, lane: Any) -> None:
            word = ir.IntegerType.get_signless(32)
            number = _scalar(lane.registers.item())
            warp_row = arith.shli(_field(number, 5, 3), arith.constant(word, 4))
            lane_row = arith.addi(warp_row, _field(number, 2, 7))
            lane_column = arith.shli(_field(number, 0, 3), arith.constant(word, 1))
            for position, register in enumerate(sums.registers.flat):
                group, half = divmod(position, 2)
                if 8 * group >= columns:
                    break
                row = arith.addi(lane_row, arith.constant(word, 8 * half))
                for offset in range(2):
                    column = arith.addi(lane_column, arith.constant(word, 8 * group + offset))
                    inside = arith.cmpi(
                        arith.CmpIPredicate.ult, column, arith.constant(word, columns)
                    )
                    branch = scf.IfOp(inside)
                    with ir.InsertionPoint(branch.then_block):
                        value = vector.extract(
                            register,
                            dynamic_position=[],
                            static_position=ir.DenseI64ArrayAttr.get([offset]),
                        )
                        memref.store(value, out, [_index(column), _index(row)])
                        scf.yield_([])

        store(out, sums, self.index())

    def multiply(self, sums: Any, weights: jax.Array, x: Any, staging: Any) -> None:
        """Starts sums += weights @ x with bf16[64, 128] weights in registers.

        The interpreter's wgmma reads shared memory only: it gets them by way of `staging`.
        """
        if self.interpret:
            staging[...] = weights
            plgpu.commit_smem()
            plgpu.wgmma(sums, staging, x)
            return
        plgpu.wgmma(sums, weights, x)
