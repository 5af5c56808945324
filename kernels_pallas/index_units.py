"""How units of `ecsq` and `int8_rans` are decoded: a symbol is an index, or two, or a part of one.

Nothing but the row's table and step is needed besides, so 8 registers are stored as soon as they
are decoded: few are held at a time, and the code for them is short.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window_layout
from codecjax.codecs.ecsq_symbols import FINE, SINGLE, SymbolLayout, layout_of
from codecjax.codecs.window_pool import place_of
from codecjax.tiles import TiledMatrix
from kernels_pallas.coded_units import CodedUnit
from kernels_pallas.emit import LANE_LAYOUT
from kernels_pallas.index_lanes import dequantised, scaled_step
from kernels_pallas.rans_lanes import STEPS, Carry
from kernels_pallas.warps import Warps

# Registers that are stored together, and the columns that they have.
_REGISTERS, _COLUMNS = 8, 32
_TABLE_MASK = 7
_ONE = 0x3F800000
ECSQ = "ecsq"


@dataclasses.dataclass(frozen=True)
class IndexUnits:
    """See `coded_units.UnitDecoder`.

    Attributes:
      symbols: what a register's steps say.
      scales: name of the array that has each row's step, or its code; None where weights are the
        bare indices.
    """

    first_table: int
    tables: int
    symbols: SymbolLayout
    scales: str | None
    expand: None = None

    @classmethod
    def of(cls, t: TiledMatrix, scaled: bool = True) -> "IndexUnits":
        """For a matrix of codec ecsq or int8_rans.

        Args:
          t: the matrix.
          scaled: whether weights are indices times steps, or the indices.
        """
        place = place_of(t)
        symbols = layout_of(t.arrays["table"]) if t.codec == ECSQ else SINGLE
        scales = "rows" if t.codec == ECSQ else "scale"
        tables = place.end_table - place.first_table
        return cls(place.first_table, tables, symbols, scales if scaled else None)

    @property
    def arrays(self) -> tuple[str, ...]:
        """See `coded_units.UnitDecoder`."""
        if self.scales is None:
            return ()
        return (self.scales, "step") if self.scales == "rows" else (self.scales,)

    def decode(self, unit: CodedUnit, carry: Carry) -> Carry:
        """See `coded_units.UnitDecoder`."""
        warps, lane = unit.warps, unit.warps.index()
        first = unit.first_row.astype(jnp.uint32) + window_layout.row_of(lane, jnp.uint32(0))
        rows = [self._row(unit, first + jnp.uint32(8 * half)) for half in range(2)]
        scales, steps = [scale for scale, _ in rows], self.symbols.steps
        offsets: list[jax.Array] = []
        if self.tables > 1:
            none = jnp.uint32(0) * lane
            for step in range(STEPS):
                is_rest = self.symbols is FINE and step % 2 == 1
                offsets.append(none if is_rest else rows[step // steps % 2][1])

        def decode_columns(part: jax.Array, carry: Carry) -> Carry:
            entries: list[jax.Array] = []
            for _ in range(0, _REGISTERS * steps, STEPS):
                carry, found = unit.lanes.steps(carry, offsets)
                entries += found
            registers = [
                dequantised(
                    warps,
                    entries[steps * register : steps * (register + 1)],
                    scales[register % 2],
                    self.symbols,
                )
                for register in range(_REGISTERS)
            ]
            unit.put(part * _COLUMNS, registers)
            return tuple(plgpu.layout_cast(each, LANE_LAYOUT) for each in carry)

        return jax.lax.fori_loop(0, window_layout.REGISTERS // _REGISTERS, decode_columns, carry)

    def _row(self, unit: CodedUnit, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Bit pattern of the step of each lane's row, and where its table begins."""
        warps, refs, none = unit.warps, unit.refs, jnp.uint32(0) * row
        if self.scales is None:
            return none + jnp.uint32(_ONE), none
        if self.scales == "rows":
            code = warps.gather(refs["rows"], row)
            # A damaged number must not lead beyond the tables.
            table = jnp.minimum(code & jnp.uint32(_TABLE_MASK), jnp.uint32(self.tables - 1))
            (step,) = warps.load(refs["step"], table + jnp.uint32(self.first_table), [0])
            return scaled_step(warps, step, code), table * jnp.uint32(unit.lanes.table_bytes)
        return _float32(warps, refs["scale"], row), none


def _float32(warps: Warps, ref: Any, index: jax.Array) -> jax.Array:
    """Bit patterns in float32 of elements of a bf16 or float32 ref, by flat index."""
    if ref.dtype == jnp.float32:
        return warps.load(ref, index, [0])[0]
    (pair,) = warps.load(ref, index >> jnp.uint32(1), [0])
    return (pair >> ((index & jnp.uint32(1)) * jnp.uint32(16))) << jnp.uint32(16)
