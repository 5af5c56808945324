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
from jax._src.lib.mlir.dialects import arith, memref, vector
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
    constant,
    emit_patch,
    field,
    from_scalar,
    index_of,
    ptx,
    scalar,
    vector_words,
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


def in_all_lanes(instructions: str) -> None:
    """Runs PTX that has no operands; not for the interpreter."""

    @plgpu.inline_mgpu()
    def apply(_: Any) -> None:
        mgpu_utils.inline_ptx(instructions, has_side_effects=True, convergent=True)

    apply()


def _per_lane(emit: Callable[..., ir.Value], *operands: jax.Array) -> jax.Array:
    """Applies `emit` (i32 values to one i32 value) to every lane."""
    return in_lanes(lambda *values: [emit(*values)], operands, 1)[0]


def _flat(ref: ir.Value) -> ir.Value:
    size = int(np.prod(ref.type.shape))
    return ref if len(ref.type.shape) == 1 else mgpu_utils.memref_reshape(ref, (size,))


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
                size = window_layout.VECTOR if word < whole else 1
                suffix, names = vector_words(0, size)
                mine = arith.muli(number, constant(4 * size))
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

            def header_at(index: ir.Value) -> ir.Value:
                return memref.load(record, [index_of(index)])

            start = address(record, shared=True)

            def entry_at(position: ir.Value) -> ir.Value:
                offset = arith.shli(position, constant(1))
                return mgpu_utils.inline_ptx(
                    "{ .reg .b16 entry; "
                    f"ld.shared.b16 entry, [$1+{4 * window_records.RECORD_HEADER}]; "
                    "cvt.u32.u16 $0, entry; }",
                    arith.addi(start, offset),
                    result_types=word_type(),
                    has_side_effects=True,
                )

            warp, lane = field(number, 5, 3), field(number, 0, 31)
            patched = emit_patch(header_at, entry_at, warp, lane, *values, record=size)
            return [from_scalar(value) for value in patched]

        return list(apply(record, self.index(), *registers))

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
