"""How the kernel for few rows gets at x: as it is in device memory, or from shared memory.

There a CTA makes it of what it is made of (see `inputs`) while its first weights are on their way;
or copies it, where that is faster.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.tiles import UNIT_COLUMNS
from kernels_pallas.emit import LANE_LAYOUT, LANES
from kernels_pallas.inputs import Gated, Input, Made, Mixed, Normed
from kernels_pallas.warps import WARP_LANES, WARPS, Warps

# Elements of x, all rows together, from which making it once for all CTAs takes less time, or
# from which fewer CTAs fit a multiprocessor.
_MOST = {Normed: 2**14, Gated: 2**13, Mixed: 2**14}
_MOST_COPIED = 2**14
# What a lane makes at once: two words.
_QUAD = 4
# Words that a lane has on their way to make x of, beside those of a unit of weights.
_MOST_ASKED = 32
Words = tuple[jax.Array, ...]


def _floats(words: Sequence[jax.Array]) -> list[jax.Array]:
    """float32[128] with those bits."""
    return [jax.lax.bitcast_convert_type(word, jnp.float32) for word in words]


def made_here(x: Made) -> bool:
    """Whether the kernel should make x itself."""
    if isinstance(x, Normed) and x.scale.dtype != jnp.bfloat16:
        return False
    return x.shape[0] * x.shape[1] <= _MOST[type(x)] and x.dtype == "bfloat16"


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of x inside a kernel.

    Attributes:
      warps: operations on lanes.
      warpgroups: of a CTA.
      count: N.
      columns: K, and zeros to the end of the last unit.
      made: the class of x, or None where it is an array.
      held: whether x is in shared memory.
      mean_of: K.
      eps: of a norm.
      parts, head_dim: P and HD of attention.
    """

    warps: Warps
    warpgroups: int
    count: int
    columns: int
    made: type[Made] | None
    held: bool
    mean_of: int
    eps: float
    parts: int
    head_dim: int

    @classmethod
    def of(
        cls, x: Input, warps: Warps, warpgroups: int, units: int, shared: bool = False
    ) -> "Rows":
        """For x that multiplies rows of so many units, of which the last may be zeros.

        `shared` tells that an array, too, had better be in shared memory.
        """
        count, k = x.shape
        columns = units * UNIT_COLUMNS
        made = type(x) if isinstance(x, Made) else None
        eps = x.eps if isinstance(x, Normed) else 0.0
        held = made is not None or (shared and count * columns <= _MOST_COPIED)
        _, parts, head_dim = x.parts.shape if isinstance(x, Mixed) else (0, 0, 0)
        return cls(warps, warpgroups, count, columns, made, held, k, eps, parts, head_dim)

    def operands(self, x: Input) -> dict[str, jax.Array]:
        """The kernel's arrays by name."""

        def padded(array: jax.Array) -> jax.Array:
            return jnp.pad(array, (*((0, 0),) * (array.ndim - 1), (0, self.columns - self.mean_of)))

        if isinstance(x, Normed):
            return {"x": padded(x.x), "scale": padded(x.scale)}
        if isinstance(x, Gated):
            return {"x": jnp.concatenate([padded(x.gate), padded(x.up)], axis=1)}
        if isinstance(x, Mixed):
            more = -(-(self.columns - self.mean_of) // self.head_dim)
            heads = [(0, more), (0, 0)]
            return {"x": jnp.pad(x.parts, [*heads, (0, 0)]), "weights": jnp.pad(x.weights, heads)}
        return {"x": padded(x)}

    @property
    def _turns(self) -> int:
        """How often all lanes of a CTA make a quad, to make a row."""
        return -(-self.columns // (_QUAD * LANES * self.warpgroups))

    def scratch(self) -> dict[str, Any]:
        """Shared memory, and what the interpreter needs to meet."""
        if not self.held:
            return {}
        # Words of two, in their order, whatever the shape.
        shape = (self.count, self._turns, self.warpgroups, _QUAD // 2 * LANES)
        scratch: dict[str, Any] = {"rows": plgpu.SMEM(shape, jnp.uint32)}
        scratch |= self.warps.meeting(self.warpgroups)
        if self.made is Normed:
            squares = (self.warpgroups * self.count, LANES)
            scratch["squares"] = plgpu.SMEM(squares, jnp.uint32)
        return scratch

    def ask(self, refs: dict[str, Any], mine: jax.Array, row: jax.Array | int = 0) -> list[Words]:
        """What of a row's quads the first are made of, for `prepare`: it is on its way meanwhile.

        Args:
          refs: the operands.
          mine: the warpgroup's number.
          row: int32 scalar.
        """
        if not self.held:
            return []
        first = self._load(refs, row, self._quad(mine, 0))
        turns = min(self._turns, _MOST_ASKED // len(first))
        return [first, *(self._load(refs, row, self._quad(mine, t)) for t in range(1, turns))]

    def prepare(
        self,
        refs: dict[str, Any],
        mine: jax.Array,
        asked: Sequence[Words],
        rows: Sequence[jax.Array | int] | None = None,
    ) -> None:
        """Puts x into shared memory, to be called by all warpgroups.

        What a norm divides by comes later: `factor`.

        Args:
          refs: the operands and the scratch.
          mine: the warpgroup's number.
          asked: what `ask` found of the first row.
          rows: that are made, int32 scalars; None for all.
        """
        if not self.held:
            return
        for row in range(self.count) if rows is None else rows:
            total = plgpu.layout_cast(jnp.zeros(LANES, jnp.float32), LANE_LAYOUT)
            for turn in range(self._turns):
                if turn < len(asked):
                    found = asked[turn]
                else:
                    found = self._load(refs, row, self._quad(mine, turn))
                total += self._make(refs, mine, row, turn, found)
            asked = ()
            if self.made is Normed:
                words = jax.lax.bitcast_convert_type(self.warps.sum_in_warp(total), jnp.uint32)
                self.warps.keep(refs["squares"], mine * self.count + row, [words])
        self.warps.meet_all(refs, self.warpgroups)

    def factor(self, refs: dict[str, Any], row: jax.Array) -> jax.Array | None:
        """float32[128]: what products with rows uint32[128] are yet to be multiplied by."""
        if self.made is not Normed:
            return None
        total = plgpu.layout_cast(jnp.zeros(LANES, jnp.float32), LANE_LAYOUT)
        for warpgroup in range(self.warpgroups):
            for warp in range(WARPS):
                number = jnp.uint32(warpgroup * self.count) + row
                index = number * jnp.uint32(LANES) + jnp.uint32(warp * WARP_LANES)
                word = self.warps.gather(refs["squares"], index)
                total += jax.lax.bitcast_convert_type(word, jnp.float32)
        return jax.lax.rsqrt(total * jnp.float32(1 / self.mean_of) + jnp.float32(self.eps))

    @property
    def _even(self) -> bool:
        """Whether every lane makes equally many quads of a row."""
        return self.columns == self._turns * _QUAD * LANES * self.warpgroups

    def _number(self, mine: jax.Array, turn: int) -> jax.Array:
        """uint32[128]: number of the quad that each lane makes, perhaps beyond the end of the row.

        Lanes beyond it make its last quad again, where nobody looks.
        """
        first = (turn * self.warpgroups + mine) * LANES
        return plgpu.layout_cast(first.astype(jnp.uint32) + self.warps.index(), LANE_LAYOUT)

    def _quad(self, mine: jax.Array, turn: int) -> jax.Array:
        """uint32[128]: `_number` of a quad of the row."""
        number = self._number(mine, turn)
        return number if self._even else jnp.minimum(number, jnp.uint32(self.columns // _QUAD - 1))

    def _load(self, refs: dict[str, Any], row: jax.Array | int, quad: jax.Array) -> Words:
        """What quads of a row are made of."""
        load, first = self.warps.load, quad * jnp.uint32(_QUAD)
        index = jnp.uint32(row * self.columns) + first
        if self.made is Normed:
            scales = load(refs["scale"], quad * jnp.uint32(_QUAD // 2), [0], vector=_QUAD // 2)
            return (*load(refs["x"], index, [0], vector=_QUAD), *scales)
        if self.made is Gated:
            index += jnp.uint32(row * self.columns)
            return tuple(load(refs["x"], index, [0, self.columns], vector=_QUAD))
        if self.made is Mixed:
            parts = range(self.parts)
            head, column = first // jnp.uint32(self.head_dim), first % jnp.uint32(self.head_dim)
            start = head * jnp.uint32(self.parts)
            index = start * jnp.uint32(self.head_dim) + column
            words = load(refs["x"], index, [p * self.head_dim for p in parts], vector=_QUAD)
            return (*words, *load(refs["weights"], start, parts))
        return tuple(load(refs["x"], index // jnp.uint32(2), [0], vector=_QUAD // 2))

    def _make(
        self,
        refs: dict[str, Any],
        mine: jax.Array,
        row: jax.Array | int,
        turn: int,
        found: Words,
    ) -> jax.Array:
        """Makes and stores each lane's quad of what was found; the sum of x's squares."""
        number = self._number(mine, turn)
        squares = plgpu.layout_cast(jnp.zeros(LANES, jnp.float32), LANE_LAYOUT)
        if self.made is Normed:
            words, squares = self._scaled(found)
            if not self._even:
                squares = jnp.where(number <= jnp.uint32(self.columns // _QUAD - 1), squares, 0.0)
        elif self.made is Gated:
            words = self._gated(found)
        elif self.made is Mixed:
            words = self._mixed(found)
        else:
            words = list(found)
        if self.warps.interpret:
            refs["rows"][row, turn, mine] = jnp.stack(words, axis=-1).reshape(-1)
        else:
            at = number * jnp.uint32(_QUAD // 2) + jnp.uint32(row * self._row_words)
            self.warps.store_shared(refs["rows"], at, words)
        return squares

    def _scaled(self, found: Words) -> tuple[list[jax.Array], jax.Array]:
        """Words of quads times the norm's scales, and the sums of the quads' squares."""
        values, scales = _floats(found[:_QUAD]), found[_QUAD:]
        both = [scale << 16 for scale in scales], [scale >> 16 << 16 for scale in scales]
        spread = _floats([both[place % 2][place // 2] for place in range(_QUAD)])
        scaled = [value * scale for value, scale in zip(values, spread, strict=True)]
        squares = sum((value * value for value in values[1:]), values[0] * values[0])
        return self._pairs(scaled), squares

    def _gated(self, found: Words) -> list[jax.Array]:
        """Words of quads of silu(gate) * up."""
        gates, ups = _floats(found[:_QUAD]), _floats(found[_QUAD:])
        return self._pairs(
            [
                gate / (jnp.float32(1) + jnp.exp(-gate)) * up
                for gate, up in zip(gates, ups, strict=True)
            ]
        )

    def _mixed(self, found: Words) -> list[jax.Array]:
        """Words of quads of the only row."""
        floats = _floats(found)
        mixtures = [floats[_QUAD * part : _QUAD * (part + 1)] for part in range(self.parts)]
        weights = floats[_QUAD * self.parts :]
        peak = functools.reduce(jnp.maximum, weights)
        counts = [jnp.exp(weight - peak) for weight in weights]
        total = functools.reduce(jnp.add, counts)
        shares = [count / total for count in counts]
        values = []
        for place in range(_QUAD):
            terms = (share * each[place] for share, each in zip(shares, mixtures, strict=True))
            values.append(functools.reduce(jnp.add, terms))
        return self._pairs(values)

    def _pairs(self, values: list[jax.Array]) -> list[jax.Array]:
        return [self.warps.pair(*values[first : first + 2]) for first in range(0, _QUAD, 2)]

    @property
    def _row_words(self) -> int:
        """From a row to the next in shared memory."""
        return self._turns * self.warpgroups * _QUAD // 2 * LANES

    def factors(self, refs: dict[str, Any], unit: jax.Array) -> list[jax.Array]:
        """x of a unit column (uint32[128]), as `Warps.multiply_in_warp` wants it."""
        number = jnp.minimum(self.warps.lane() // 4, jnp.uint32(self.count - 1))
        row_words = self._row_words if self.held else self.columns // 2
        index = number * jnp.uint32(row_words) + self.warps.lane() % 4
        index += unit * jnp.uint32(UNIT_COLUMNS // 2)
        offsets = range(0, UNIT_COLUMNS // 2, 4)
        if not self.held:
            return self.warps.load(refs["x"], index, offsets)
        return [self.warps.gather(refs["rows"], index + jnp.uint32(offset)) for offset in offsets]
