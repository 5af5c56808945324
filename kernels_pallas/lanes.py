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

    def patch(self, unit: Any, entry: jax.Array) -> None:
        """Writes each lane's escape (an entry of `window`'s lists, 0 for none) into a unit.

        `unit` is a bf16[64, 128] ref in shared memory with SWIZZLE_TRANSFORMS.
        """
        if self.interpret:
            valid = (entry & window.VALID) != 0
            row = (entry >> window.ROW_SHIFT) & (UNIT_ROWS - 1)
            value = (entry >> window.VALUE_SHIFT).astype(jnp.uint16)
            unit[...] = (
                unit[...]
                .at[jnp.where(valid, row, UNIT_ROWS), entry & (UNIT_COLUMNS - 1)]
                .set(jax.lax.bitcast_convert_type(value, jnp.bfloat16), mode="drop")
            )
            return

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(SWIZZLE_TRANSFORMS), LANE_LAYOUT))
        def store(_: Any, unit: ir.Value, entry: Any) -> None:
            word, half = ir.IntegerType.get_signless(32), ir.IntegerType.get_signless(16)
            bits = _scalar(entry.registers.item())

            def field(shift: int, mask: int) -> ir.Value:
                shifted = arith.shrui(bits, arith.constant(word, shift))
                return arith.andi(shifted, arith.constant(word, mask))

            def index(value: ir.Value) -> ir.Value:
                return arith.index_castui(ir.IndexType.get(), value)

            row_in_group = field(window.ROW_SHIFT, 7)
            # The 128-byte swizzle exchanges the eight 16-byte chunks of a row by its number.
            chunk = arith.xori(field(3, 7), row_in_group)
            column = arith.addi(arith.shli(chunk, arith.constant(word, 3)), field(0, 7))
            valid = arith.trunci(ir.IntegerType.get_signless(1), field(15, 1))
            branch = scf.IfOp(valid)
            with ir.InsertionPoint(branch.then_block):
                value = arith.trunci(half, field(window.VALUE_SHIFT, 0xFFFF))
                position = [field(window.ROW_SHIFT + 3, 7), field(6, 1), row_in_group, column]
                weight = arith.bitcast(ir.BF16Type.get(), value)
                memref.store(weight, unit, [index(part) for part in position])
                scf.yield_([])

        store(unit, entry)
