"""How units of codec `rans` are decoded: symbols are two exponents; bytes and escapes follow."""

import dataclasses

import jax
import jax.numpy as jnp

from codecjax.codecs import window_layout
from codecjax.codecs.window_pool import place_of
from codecjax.tiles import TiledMatrix
from kernels_pallas.coded_units import CodedUnit
from kernels_pallas.lane_memory import unit_words
from kernels_pallas.rans_lanes import STEPS, Carry
from kernels_pallas.unit_walk import row_bias

_WORDS = 16


@dataclasses.dataclass(frozen=True)
class RansUnits:
    """See `coded_units.UnitDecoder`.

    Attributes:
      record: words of an escape record.
    """

    first_table: int
    record: int
    tables: int = 1
    arrays: tuple[str, ...] = ("words", "escapes", "base")

    @classmethod
    def of(cls, t: TiledMatrix) -> "RansUnits":
        """For a matrix of codec rans."""
        return cls(place_of(t).first_table, t.arrays["escapes"].shape[-1])

    @staticmethod
    def expand(symbol: jax.Array) -> jax.Array:
        """The two digits in a symbol's lowest byte where bf16 has exponents."""
        low = (symbol & jnp.uint32(0xF)) << jnp.uint32(7)
        return low | (symbol & jnp.uint32(0xF0)) << jnp.uint32(19)

    def decode(self, unit: CodedUnit, carry: Carry) -> Carry:
        """See `coded_units.UnitDecoder`."""
        warps, lane = unit.warps, unit.warps.index()
        loads = unit_words(unit.number, lane, _WORDS)
        mantissas = warps.load_all(unit.refs["words"], loads)
        records = warps.load_record(unit.refs["escapes"], unit.number, self.record)
        base = unit.refs["base"]
        bias = row_bias(lambda index: warps.gather(base, index), unit.first_row, lane)
        registers: list[jax.Array] = []
        for _ in range(0, window_layout.REGISTERS, STEPS):
            carry, exponents = unit.lanes.steps(carry)
            for exponent in exponents:
                half = len(registers) % 2
                mantissa = mantissas[len(registers) // 2]
                mantissa = warps.swap(mantissa) if half else mantissa
                registers.append(warps.merge(mantissa, exponent + bias[half]))
        unit.put(0, warps.patch_warp(registers, records, warps.warp(), self.record))
        return carry
