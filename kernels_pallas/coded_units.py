"""What the kernel of entropy-coded tiles and the codecs agree on: how a unit is decoded."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax

from kernels_pallas.rans_lanes import Carry, Expand, RansLanes
from kernels_pallas.warps import Warps


@dataclasses.dataclass(frozen=True)
class CodedUnit:
    """A unit that a warpgroup decodes, inside a kernel.

    Attributes:
      warps: operations on lanes.
      lanes: what takes steps of the unit's stream.
      refs: the codec's arrays in device memory, by name.
      first_row: int32 scalar, number of the unit's first row in arrays by row.
      number: uint32 scalar, the unit's number among those of all compressed tiles.
      put: stores registers, from a column of the unit on, wherever the unit should be: 32 for all
        of its columns, or 8 for each 32 of them.
    """

    warps: Warps
    lanes: RansLanes
    refs: dict[str, Any]
    first_row: jax.Array
    number: jax.Array
    put: Callable[[jax.Array | int, list[jax.Array]], None]


class UnitDecoder(Protocol):
    """A codec's part in the kernel: static facts of a matrix, and how its units are decoded."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays it reads beside those of the coder."""

    @property
    def first_table(self) -> int:
        """Number of the matrix's first table in `table`."""

    @property
    def tables(self) -> int:
        """How many tables the matrix has."""

    @property
    def expand(self) -> Expand | None:
        """As of `RansLanes`."""

    def decode(self, unit: CodedUnit, carry: Carry) -> Carry:
        """Decodes a unit and puts all of its registers."""
