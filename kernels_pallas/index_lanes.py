"""Values of quantised weights on a GPU: entries of `rans_lanes` to bf16, as the codecs define it.

An index times its row's step, in float32, rounded to bf16 once. A symbol becomes a float without a
conversion: its bits are put among those of a power of two in whose binade they count ones (or
eights), and what that adds is subtracted, which is exact.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs.ecsq_quantiser import QUARTERS
from codecjax.codecs.ecsq_symbols import FINE, PAIR, SymbolLayout
from kernels_pallas.emit import ptx
from kernels_pallas.lanes import in_lanes
from kernels_pallas.rans_lanes import SYMBOL_SHIFT
from kernels_pallas.warps import Warps

_MANTISSA_BITS = 23


def _bits(value: float) -> int:
    """The bit pattern of a float32."""
    return int(np.float32(value).view(np.uint32))


_QUARTERS = tuple(_bits(float(constant)) for constant in QUARTERS)


@dataclasses.dataclass(frozen=True)
class _Field:
    """Bits of an entry, and what the lowest of them counts.

    Attributes:
      entry: which of a weight's entries.
      first, length: of the bits.
      unit: 1, or 8 where the symbol counts eights.
    """

    entry: int
    first: int
    length: int
    unit: int = 1

    @property
    def power(self) -> float:
        """The power of two in whose binade the first bit counts `unit`."""
        return self.unit * 2.0 ** (_MANTISSA_BITS - self.first)

    def emit(self, result: str, entry: str) -> str:
        """PTX of the float that is `power` more than what the bits say."""
        mask = ((1 << self.length) - 1) << self.first
        return f"and.b32 {result}, {entry}, {mask}; or.b32 {result}, {result}, {_bits(self.power)};"

    def read(self, entry: jax.Array) -> jax.Array:
        """int32: what the bits say."""
        mask = jnp.uint32((1 << self.length) - 1)
        return ((entry >> jnp.uint32(self.first)) & mask).astype(jnp.int32) * self.unit


def _fields(symbols: SymbolLayout) -> tuple[tuple[_Field, ...], tuple[_Field, ...]]:
    """What adds up to the biased index of a register's low weight, and of its high one."""
    if symbols is PAIR:
        return (_Field(0, SYMBOL_SHIFT, 4),), (_Field(0, SYMBOL_SHIFT + 4, 4),)
    if symbols is FINE:
        low, high = (
            (_Field(at, SYMBOL_SHIFT, 8, unit=8), _Field(at + 1, SYMBOL_SHIFT, 8)) for at in (0, 2)
        )
        return low, high
    return (_Field(0, SYMBOL_SHIFT, 8),), (_Field(1, SYMBOL_SHIFT, 8),)


def dequantised(
    warps: Warps, entries: Sequence[jax.Array], scale: jax.Array, symbols: SymbolLayout
) -> jax.Array:
    """uint32[128]: a register of two bf16.

    Args:
      warps: operations on lanes.
      entries: uint32[128] each, of the register's steps.
      scale: uint32[128], the bit pattern of the row's step in float32.
      symbols: what a register's steps say.
    """
    bias = symbols.bias * (8 if symbols is FINE else 1)
    if warps.interpret:
        step, halves = jax.lax.bitcast_convert_type(scale, jnp.float32), []
        for fields in _fields(symbols):
            index = sum(field.read(entries[field.entry]) for field in fields) - bias
            value = (index.astype(jnp.float32) * step).astype(jnp.bfloat16)
            halves.append(jax.lax.bitcast_convert_type(value, jnp.uint16).astype(jnp.uint32))
        return halves[0] | halves[1] << jnp.uint32(16)
    code = "{ .reg .b32 low, high, more; "
    for name, fields in zip(("low", "high"), _fields(symbols), strict=True):
        first, *others = fields
        code += first.emit(name, f"${1 + first.entry}")
        for other in others:
            code += other.emit("more", f"${1 + other.entry}") + f"add.rn.f32 {name}, {name}, more;"
        beyond = -(bias + sum(field.power for field in fields))
        code += f"add.rn.f32 {name}, {name}, 0f{_bits(beyond):08X};"
        code += f"mul.rn.f32 {name}, {name}, ${1 + len(entries)};"
    code += "cvt.rn.bf16x2.f32 $0, high, low; }"
    (register,) = in_lanes(lambda *values: [ptx(code)(*values)], [*entries, scale], 1)
    return register


def scaled_step(warps: Warps, step: jax.Array, code: jax.Array) -> jax.Array:
    """uint32[128]: the bit pattern of `ecsq_quantiser.row_scale` of a step and a row's byte.

    Args:
      warps: operations on lanes.
      step: uint32[128], bit pattern of a float32.
      code: uint32[128], at most 255: table | shift << 3.
    """
    quarter, octaves = code >> jnp.uint32(3) & jnp.uint32(3), code >> jnp.uint32(5)
    # Of a constant of four, the power of two by which it is doubled.
    doubled = octaves << jnp.uint32(_MANTISSA_BITS)
    if warps.interpret:
        constant = jnp.uint32(_QUARTERS[0])
        for number, bits in enumerate(_QUARTERS[1:], start=1):
            constant = jnp.where(quarter == number, jnp.uint32(bits), constant)
        factors = (step, constant + doubled)
        one, other = (jax.lax.bitcast_convert_type(each, jnp.float32) for each in factors)
        return jax.lax.bitcast_convert_type(one * other, jnp.uint32)
    chosen = "".join(
        f"setp.eq.u32 p, $2, {number}; @p mov.b32 v, {bits};"
        for number, bits in enumerate(_QUARTERS)
    )
    product = ptx(
        f"{{ .reg .b32 v; .reg .pred p; mov.b32 v, 0; {chosen} add.u32 v, v, $3; "
        "mul.rn.f32 $0, $1, v; }"
    )
    (scale,) = in_lanes(lambda *values: [product(*values)], [step, quarter, doubled], 1)
    return scale
