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

from codecjax.codecs import window, window_layout, window_records
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS
from kernels_pallas.emit import (
    LANE_LAYOUT,
    LANES,
    MERGE,
    SWAP,
    address,
    emit_patch,
    field,
    from_scalar,
    index_of,
    ptx,
    scalar,
    shifted,
    word_type,
)

SWIZZLE_COLUMNS = 64
SWIZZLE_TRANSFORMS = (
    plgpu.TilingTransform((8, SWIZZLE_COLUMNS)),
    plgpu.SwizzleTransform(2 * SWIZZLE_COLUMNS),
)


# One uint32 a lane.
WORDS_TYPE = plgpu.ShapeDtypeStruct((LANES,), jnp.uint32, layout=LANE_LAYOUT)


def in_lanes(
    emit: Callable[..., Sequence[ir.Value]], operands: Sequence[jax.Array], results: int
) -> list[jax.Array]:
    """Applies `emit` (i32 values to so many i32 values) to every lane."""

    @plgpu.inline_mgpu(arg_types=(LANE_LAYOUT,) * len(operands), return_type=[WORDS_TYPE] * results)
    def apply(_: Any, *arrays: Any) -> Any:
        found = emit(*(scalar(array.registers.item()) for array in arrays))
        return [from_scalar(value) for value in found]

    return list(apply(*operands))


def _per_lane(emit: Callable[..., ir.Value], *operands: jax.Array) -> jax.Array:
    """Applies `emit` (i32 values to one i32 value) to every lane."""
    return in_lanes(lambda *values: [emit(*values)], operands, 1)[0]


def _flat(ref: ir.Value) -> ir.Value:
    size = int(np.prod(ref.type.shape))
    return ref if len(ref.type.shape) == 1 else mgpu_utils.memref_reshape(ref, (size,))


# Of the buffer for received sums, what a barrier takes and the alignment of the rest.
_BARRIER_WORDS = 32


def _used_registers(columns: int) -> int:
    """Registers (of two float32) of a lane that hold sums of so many columns."""
    return 2 * -(-columns // 8)


def _owned_registers(columns: int, splits: int) -> int:
    """Of those registers, the most that one of a cluster's CTAs adds up."""
    return -(-_used_registers(columns) // splits)


def _effect(template: str, *operands: ir.Value) -> None:
    mgpu_utils.inline_ptx(template, *operands, has_side_effects=True, convergent=True)


def _pair(register: ir.Value) -> list[ir.Value]:
    return [
        vector.extract(
            register, dynamic_position=[], static_position=ir.DenseI64ArrayAttr.get([offset])
        )
        for offset in range(2)
    ]


def _store_pair(
    out: ir.Value, lane: ir.Value, position: ir.Value, pair: Sequence[ir.Value], columns: ir.Value
) -> None:
    """Stores a lane's register number `position` of wgmma's sums to its place in [columns, 64]."""
    word = ir.IntegerType.get_signless(32)
    warp_row = arith.shli(field(lane, 5, 3), arith.constant(word, 4))
    half_row = arith.shli(field(position, 0, 1), arith.constant(word, 3))
    row = arith.addi(arith.addi(warp_row, field(lane, 2, 7)), half_row)
    first = arith.addi(
        arith.shli(shifted(position, 1), arith.constant(word, 3)),
        arith.shli(field(lane, 0, 3), arith.constant(word, 1)),
    )
    for offset, value in enumerate(pair):
        column = arith.addi(first, arith.constant(word, offset))
        inside = arith.cmpi(arith.CmpIPredicate.ult, column, columns)
        branch = scf.IfOp(inside)
        with ir.InsertionPoint(branch.then_block):
            memref.store(value, out, [index_of(column), index_of(row)])
            scf.yield_([])


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Lane operations, as instructions or (`interpret`) in plain JAX.

    Attributes:
      interpret: which.
      anew: whether `index` is read where it is used. What follows from it can't be known earlier
        then, and takes no registers through a loop.
    """

    interpret: bool
    anew: bool = False

    def index(self) -> jax.Array:
        """Lane number 0..127 in the warpgroup."""
        if self.interpret:
            return jnp.arange(LANES, dtype=jnp.uint32)

        def read() -> list[ir.Value]:
            number = mgpu_utils.inline_ptx(
                "{ .reg .u32 t; mov.u32 t, %tid.x; and.b32 $0, t, 127; }",
                result_types=ir.IntegerType.get_signless(32),
                has_side_effects=self.anew,
            )
            return [number]

        return in_lanes(read, [], 1)[0]

    def in_each(self, value: jax.Array) -> jax.Array:
        """uint32[128]: an int32 scalar in each lane."""
        everywhere = jnp.broadcast_to(value, (LANES,)).astype(jnp.uint32)
        return plgpu.layout_cast(everywhere, LANE_LAYOUT)

    def unit_words(self, ref: Any) -> list[jax.Array]:
        """Each lane's words of a unit that is in shared memory: a uint32[n, 128] ref, as stored."""
        if self.interpret:
            return list(window_layout.by_lane(ref[...]))
        count = ref.shape[0]
        whole = window_layout.in_fours(count)

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), LANE_LAYOUT), return_type=[WORDS_TYPE] * count
        )
        def load(_: Any, ref: ir.Value, lane: Any) -> Any:
            start, number = address(ref, shared=True), scalar(lane.registers.item())
            found: list[ir.Value] = []
            for word in (*range(0, whole, window_layout.VECTOR), *range(whole, count)):
                size, suffix, names = 1, "b32", "$0"
                if word < whole:
                    size, suffix, names = window_layout.VECTOR, "v4.b32", "{$0, $1, $2, $3}"
                mine = arith.muli(number, arith.constant(word_type(), 4 * size))
                found += mgpu_utils.inline_ptx(
                    f"ld.shared.{suffix} {names}, [${size}+{4 * LANES * word}];",
                    arith.addi(start, mine),
                    result_types=[word_type()] * size,
                    has_side_effects=True,
                )
            return [from_scalar(word) for word in found]

        return list(load(ref, self.index()))

    def swap(self, word: jax.Array) -> jax.Array:
        """`window_layout.swap_bytes` in one instruction."""
        if self.interpret:
            return window_layout.swap_bytes(word)
        return _per_lane(SWAP, word)

    def merge(self, mantissas: jax.Array, exponents: jax.Array) -> jax.Array:
        """`window_layout.merge_exponent` in one instruction."""
        if self.interpret:
            return window_layout.merge_exponent(mantissas, exponents)
        return _per_lane(MERGE, mantissas, exponents)

    def gather(self, ref: Any, index: jax.Array) -> jax.Array:
        """Each lane's element of a uint8, uint32 or int32 ref, by flat index, as uint32."""
        if self.interpret:
            values = ref[...].reshape(-1)[index]
            if values.dtype == jnp.int32:
                return jax.lax.bitcast_convert_type(values, jnp.uint32)
            return values.astype(jnp.uint32)

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), LANE_LAYOUT),
            return_type=WORDS_TYPE,
        )
        def load(_: Any, ref: ir.Value, index: Any) -> Any:
            position = arith.index_castui(ir.IndexType.get(), scalar(index.registers.item()))
            value = memref.load(_flat(ref), [position])
            word = ir.IntegerType.get_signless(32)
            return from_scalar(value if value.type == word else arith.extui(word, value))

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

    def patch(self, registers: Sequence[jax.Array], record: Any, size: int) -> list[jax.Array]:
        """Gives escaped weights their exponents.

        Args:
          registers: 32 words a lane, decoded with digit 0 where a weight escaped.
          record: uint32 ref, the escape record, see `window_records`.
          size: RECORD; what the ref has beyond it is not used.
        """
        if self.interpret:
            return list(window.patch(jnp.stack(registers), *window_records.read(record[...])))

        count = len(registers)
        words = [WORDS_TYPE] * count

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), *(LANE_LAYOUT,) * (count + 1)), return_type=words
        )
        def apply(_: Any, record: ir.Value, *arrays: Any) -> Any:
            number, *values = (scalar(array.registers.item()) for array in arrays)

            def read(index: ir.Value) -> ir.Value:
                return memref.load(record, [index_of(index)])

            start = address(record, shared=True)

            def entry_at(position: ir.Value) -> ir.Value:
                offset = arith.shli(position, arith.constant(word_type(), 1))
                return mgpu_utils.inline_ptx(
                    "{ .reg .b16 entry; "
                    f"ld.shared.b16 entry, [$1+{4 * window_records.RECORD_HEADER}]; "
                    "cvt.u32.u16 $0, entry; }",
                    arith.addi(start, offset),
                    result_types=word_type(),
                    has_side_effects=True,
                )

            warp, lane = field(number, 5, 3), field(number, 0, 31)
            patched = emit_patch(read, entry_at, warp, lane, *values, record=size)
            return [from_scalar(value) for value in patched]

        return list(apply(record, self.index(), *registers))

    def store_sum(
        self,
        out: Any,
        received: Any,
        sums: jax.Array,
        columns: int,
        splits: int,
        inside: jax.Array | None = None,
    ) -> None:
        """Writes the first columns of the cluster's sum, transposed, to a [columns, 64] ref.

        The registers of float32[64, n] sums are dealt to the cluster's CTAs; each adds what it
        receives in the order of the CTAs, so the sum has the same bits every time. A CTA that
        has sent its own and has nothing to add is done: that it need not wait for the others is
        what asynchronous stores and a barrier of the receiver's are for.

        The interpreter writes the CTA's own sums, and leaves adding them to others.

        Args:
          out: float32[columns, 64] ref in device memory, the same for all of the cluster.
          received: flat float32 ref in shared memory, `received_size` long, after `prepare_sum`.
          sums: float32[64, n], n a multiple of 8.
          columns: at most n.
          splits: CTAs of the cluster.
          inside: int32 scalar, beyond how many columns nothing is stored, if there are fewer.
        """
        if self.interpret:
            out[...] = sums[:, :columns].T
            return
        inside = jnp.int32(columns) if inside is None else jnp.minimum(inside, columns)
        layout = plgpu.Layout.WGMMA
        used, depth = _used_registers(columns), _owned_registers(columns, splits)

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), plgpu.RefType(), layout, LANE_LAYOUT, LANE_LAYOUT)
        )
        def store(
            _: Any, out: ir.Value, received: ir.Value, sums: Any, lane: Any, inside: Any
        ) -> None:
            word, float_ = ir.IntegerType.get_signless(32), ir.F32Type.get()
            number, end = scalar(lane.registers.item()), scalar(inside.registers.item())
            pairs = [_pair(register) for register in list(sums.registers.flat)[:used]]
            if splits == 1:
                for position, pair in enumerate(pairs):
                    _store_pair(out, number, arith.constant(word, position), pair, end)
                return
            rank = ptx("mov.u32 $0, %cluster_ctarank;")()
            barrier = address(received, shared=True)
            start = arith.addi(barrier, arith.constant(word, 4 * _BARRIER_WORDS))
            here = arith.addi(start, arith.shli(number, arith.constant(word, 3)))
            slot = 8 * LANES
            there = arith.addi(here, arith.muli(rank, arith.constant(word, depth * slot)))
            # All barriers of the cluster are initialised, see `prepare_sum`.
            _effect("barrier.cluster.wait.acquire.aligned;")
            for position, pair in enumerate(pairs):
                target = arith.addi(there, arith.constant(word, position // splits * slot))
                _effect(
                    "{ .reg .b32 a, b; "
                    f"mapa.shared::cluster.u32 a, $0, {position % splits}; "
                    f"mapa.shared::cluster.u32 b, $1, {position % splits}; "
                    "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 "
                    "[a], {$2, $3}, [b]; }",
                    target,
                    barrier,
                    *pair,
                )
            receives = arith.cmpi(arith.CmpIPredicate.ult, rank, arith.constant(word, used))
            branch = scf.IfOp(receives)
            with ir.InsertionPoint(branch.then_block):
                _effect(
                    "{ .reg .pred p; wait: "
                    "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 "
                    "p, [$0], 0; @!p bra wait; }",
                    barrier,
                )
                for turn in range(depth):
                    total = [arith.constant(float_, 0.0)] * 2
                    for source in range(splits):
                        offset = arith.constant(word, (source * depth + turn) * slot)
                        pair = mgpu_utils.inline_ptx(
                            "ld.shared.v2.f32 {$0, $1}, [$2];",
                            arith.addi(here, offset),
                            result_types=[float_, float_],
                            has_side_effects=True,
                        )
                        total = [arith.addf(old, new) for old, new in zip(total, pair, strict=True)]
                    position = arith.addi(rank, arith.constant(word, turn * splits))
                    _store_pair(out, number, position, total, end)
                scf.yield_([])

        store(out, received, sums, self.index(), self.in_each(inside))

    def prepare_sum(self, received: Any, columns: int, splits: int) -> None:
        """Makes `received` ready for `store_sum`; to be called by all CTAs at their start."""
        if self.interpret or splits == 1:
            return
        used = _used_registers(columns)

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), LANE_LAYOUT))
        def initialise(_: Any, received: ir.Value, lane: Any) -> None:
            word = ir.IntegerType.get_signless(32)
            zero = arith.constant(word, 0)
            first = arith.cmpi(arith.CmpIPredicate.eq, scalar(lane.registers.item()), zero)
            branch = scf.IfOp(first)
            with ir.InsertionPoint(branch.then_block):
                # Where registers cannot be dealt evenly, the last CTAs have one less.
                rank = ptx("mov.u32 $0, %cluster_ctarank;")()
                dealt = arith.subi(arith.constant(word, used + splits - 1), rank)
                owned = arith.divui(dealt, arith.constant(word, splits))
                _effect(
                    "mbarrier.init.shared::cta.b64 [$0], 1; "
                    "fence.mbarrier_init.release.cluster; "
                    "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;",
                    address(received, shared=True),
                    arith.muli(owned, arith.constant(word, splits * 8 * LANES)),
                )
                scf.yield_([])
            _effect("bar.warp.sync 0xffffffff; barrier.cluster.arrive.relaxed.aligned;")

        initialise(received, self.index())

    @staticmethod
    def received_size(columns: int, splits: int) -> int:
        """Length of the float32 buffer that `store_sum` needs in each CTA."""
        if splits == 1:
            return 1
        received = splits * _owned_registers(columns, splits)
        return _BARRIER_WORDS + 2 * LANES * received

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

    def meet(self) -> None:
        """Waits for all lanes of the warpgroup, so that copies may overwrite what they have read.

        `commit_smem` also waits for what they have written.
        """
        if self.interpret:
            plgpu.commit_smem()
            return

        @plgpu.inline_mgpu()
        def wait(_: Any) -> None:
            mgpu_utils.warpgroup_barrier()

        wait()

    def settled(self, weights: jax.Array) -> jax.Array:
        """The same weights, decoded while the matrix unit was at work, for the next `multiply`.

        To be called once it has finished: ptxas makes each of its instructions wait for the one
        before if what a later one reads is written meanwhile, so it must be written again, by
        something that ptxas can't leave out.
        """
        if self.interpret:
            return weights
        layout = plgpu.Layout.WGMMA

        @plgpu.inline_mgpu(
            arg_types=(layout,),
            return_type=plgpu.ShapeDtypeStruct(weights.shape, weights.dtype, layout=layout),
        )
        def settle(_: Any, weights: Any) -> Any:
            word = word_type()
            zero = arith.shrui(ptx("mov.u32 $0, %nctaid.x;")(), arith.constant(word, 31))
            vector_type = ir.VectorType.get((1,), word)
            settled = np.empty_like(weights.registers)
            for place, register in np.ndenumerate(weights.registers):
                bits = scalar(vector.bitcast(vector_type, register))
                # In its place after the wait, as it has side effects.
                bits = mgpu_utils.inline_ptx(
                    "xor.b32 $0, $1, $2;", bits, zero, result_types=word, has_side_effects=True
                )
                settled[place] = vector.bitcast(register.type, vector.broadcast(vector_type, bits))
            return mgpu.FragmentedArray(_registers=settled, _layout=weights.layout, _is_signed=None)

        return settle(weights)
