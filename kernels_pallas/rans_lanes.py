"""Steps of `rans_coder` on a GPU: a state a lane, a stream a warp.

What decoding costs is instructions, not memory: 20 of them a step. So tables in shared memory are
not as they are stored. Either an entry takes two words, its fields apart and what the symbol
means to its codec; or, where a matrix has several tables or a meaning is as quickly made as read,
one word whose fields take an instruction each:

    offset | symbol << SYMBOL_SHIFT | frequency << 20

And each warp has the next words of its stream in a *ring* in shared memory, which is filled ahead
every few steps with what was asked for long before.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs.rans_coder import LANES, WARP_LANES, WARPS
from kernels_pallas.emit import LANE_LAYOUT, address, from_scalar, ptx, scalar, word_type
from kernels_pallas.lanes import WORDS_TYPE
from kernels_pallas.warps import Warps

# Steps between two looks at the ring. They take up to 32 words each.
STEPS = 8
# Bytes of a ring, and what it is filled with at a time: the words that STEPS may take.
_RING, _BLOCK = 2048, 2 * WARP_LANES * STEPS
_LOADS = _BLOCK // (4 * WARP_LANES)
_FIRST_BLOCKS = 3
# A ring that begins at a multiple of its size needs no addition to wrap around.
RING_WORDS = _RING // 4
Expand = Callable[[jax.Array], jax.Array]
Carry = tuple[jax.Array, ...]
# Where the symbol begins in an entry of one word.
SYMBOL_SHIFT = 12
_FREQUENCY_SHIFT, _OFFSET_MASK = 20, 0xFFF

# The results are the symbol's meaning or entry, state and position in bytes; the arguments state,
# position, addresses of table and ring, and the mask of lower lanes.
_STEP = """{{
    .reg .b32 a, f, x, m, r; .reg .pred need;
    and.b32 a, $3, {mask}; shl.b32 a, a, {entry_shift}; add.u32 a, a, $5;
    {fields} shr.b32 x, $3, {bits}; mad.lo.u32 x, f, x, a;
    setp.lt.u32 need, x, 65536; vote.sync.ballot.b32 m, need, 0xffffffff;
    and.b32 r, m, $7; popc.b32 r, r; shl.b32 r, r, 1; add.u32 r, r, $4;
    and.b32 r, r, {last}; or.b32 r, r, $6; ld.shared.u16 a, [r];
    mov.b32 $1, x; @need prmt.b32 $1, a, x, 0x5410;
    popc.b32 m, m; shl.b32 m, m, 1; add.u32 $2, $4, m; }}"""
# Gives frequency f and offset a of the entry at address a, and the first result.
_TWO_WORDS = "ld.shared.v2.b32 {f, $0}, [a]; shr.b32 a, f, 16; and.b32 f, f, 0xffff;"
_ONE_WORD = (
    f"ld.shared.b32 $0, [a]; shr.b32 f, $0, {_FREQUENCY_SHIFT}; and.b32 a, $0, {_OFFSET_MASK};"
)

_LOAD = """min.u32 a, n, {last_pair}; mul.wide.u32 p, a, 4; add.u64 p, p, {stream};
    ld.global.nc.b32 {register}, [p]; add.u32 n, n, 32;"""


@dataclasses.dataclass(frozen=True)
class RansLanes:
    """What the lanes of a warpgroup need to decode.

    Attributes:
      warps: operations on lanes.
      bits: of probabilities.
      tables: how many there are.
      expand: what an entry's symbol (its lowest byte) means, as uint32; None where `steps` should
        give entries of one word.
      table: uint32 ref in shared memory of shape `table_shape`, see `fill_tables`.
      rings: uint32 ref in shared memory, `rings_size` long; the warpgroup's own.
      stream: uint16[LENGTH] ref in device memory, LENGTH even.
    """

    warps: Warps
    bits: int
    tables: int
    expand: Expand | None
    table: Any
    rings: Any
    stream: Any

    @staticmethod
    def rings_size() -> int:
        """Words of shared memory for a warpgroup's rings, and to align them."""
        return (WARPS + 1) * RING_WORDS

    @property
    def table_bytes(self) -> int:
        """Of one table in shared memory."""
        return 4 * self._words << self.bits

    @property
    def _words(self) -> int:
        return 1 if self.expand is None else 2

    def fill_tables(
        self, entries: Any, first: jax.Array | int, part: jax.Array, parts: int
    ) -> None:
        """Puts a part of the tables into shared memory, before all warpgroups wait for all parts.

        Args:
          entries: uint32[.., 2**bits] ref in device memory, as `rans_coder.decode_table` gives it.
          first: number of the first table there, an int32 scalar.
          part: of so many `parts` of all tables.
        """
        size = (self.tables << self.bits) // parts
        if self.warps.interpret:
            mine = entries[pl.ds(first, self.tables)].reshape(parts, size)[part]
            self.table[part] = jnp.stack(self._as_read(mine), axis=-1)
            return
        for at in range(0, size, LANES):
            slot = (part * size).astype(jnp.uint32) + jnp.uint32(at) + self.warps.index()
            start = jnp.uint32(first) << jnp.uint32(self.bits)
            (entry,) = self.warps.load(entries, slot + start, [0])
            words = self._as_read(entry)
            self.warps.store_shared(self.table, slot * jnp.uint32(self._words), words)

    def _as_read(self, entry: jax.Array) -> list[jax.Array]:
        """The words in shared memory of a stored entry."""
        frequency, offset = (entry >> jnp.uint32(8)) & jnp.uint32(0xFFF), entry >> jnp.uint32(20)
        if self.expand is not None:
            return [frequency | offset << jnp.uint32(16), self.expand(entry)]
        symbol = (entry & jnp.uint32(0xFF)) << jnp.uint32(SYMBOL_SHIFT)
        return [offset | symbol | frequency << jnp.uint32(_FREQUENCY_SHIFT)]

    def open(self, state: jax.Array, position: jax.Array) -> Carry:
        """What `steps` carries from a state on and a position, the same for all of a warp."""
        if self.warps.interpret:
            return state, position
        pairs = int(self.stream.shape[0]) // 2

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), plgpu.RefType(), *(LANE_LAYOUT,) * 2),
            return_type=[WORDS_TYPE] * (3 + _LOADS),
        )
        def apply(_: Any, rings: ir.Value, stream: ir.Value, *arrays: Any) -> Any:
            position, number = (scalar(array.registers.item()) for array in arrays)
            at = 3 + _LOADS
            loads = [
                _LOAD.format(last_pair=pairs - 1, stream=f"${at + 1}", register=f"w{load}")
                for load in range(_FIRST_BLOCKS * _LOADS)
            ]
            stores = [
                f"st.shared.b32 [r+{4 * WARP_LANES * load}], w{load};"
                for load in range(_FIRST_BLOCKS * _LOADS)
            ]
            ahead = [
                _LOAD.format(last_pair=pairs - 1, stream=f"${at + 1}", register=f"${3 + load}")
                for load in range(_LOADS)
            ]
            template = (
                f"{{ .reg .b32 a, n, r, w<{_FIRST_BLOCKS * _LOADS}>; .reg .b64 p; "
                f"shr.b32 n, ${at}, 1; min.u32 n, n, {pairs - 1}; "
                f"and.b32 a, ${at + 3}, 31; add.u32 n, n, a; "
                f"shl.b32 r, a, 2; add.u32 r, r, ${at + 2}; "
                + " ".join((*loads, *ahead, *stores))
                + f" and.b32 a, ${at}, 1; shl.b32 $0, a, 1; "
                f"mov.b32 $1, {_FIRST_BLOCKS * _BLOCK}; mov.b32 $2, n; bar.warp.sync 0xffffffff; }}"
            )
            found = mgpu_utils.inline_ptx(
                template,
                position,
                address(stream),
                self._ring(rings, number),
                number,
                result_types=[word_type()] * (3 + _LOADS),
                has_side_effects=True,
                convergent=True,
            )
            return [from_scalar(value) for value in found]

        return state, *apply(self.rings, self.stream, position, self.warps.index())

    def steps(
        self, carry: Carry, offsets: Sequence[jax.Array] = ()
    ) -> tuple[Carry, list[jax.Array]]:
        """Decodes STEPS steps.

        Args:
          carry: what `open` gave, or the steps before.
          offsets: uint32[128] for each step, where its table begins, in bytes from the first one;
            none where all steps have the first.

        Returns:
          What to carry on, and what each step's symbol means, or its entry.
        """
        if self.warps.interpret:
            return self._steps_in_jax(carry, offsets)
        pairs = int(self.stream.shape[0]) // 2
        count = len(carry)

        @plgpu.inline_mgpu(
            arg_types=(*(plgpu.RefType(),) * 3, *(LANE_LAYOUT,) * (1 + count + len(offsets))),
            return_type=[WORDS_TYPE] * (count + STEPS),
        )
        def apply(_: Any, table: ir.Value, rings: ir.Value, stream: ir.Value, *arrays: Any) -> Any:
            number, *values = (scalar(array.registers.item()) for array in arrays)
            state, position, *filled = values[:count]
            ring, first = self._ring(rings, number), address(table, shared=True)
            tables = [arith.addi(first, offset) for offset in values[count:]] or [first] * STEPS
            filled = _refilled(position, filled, ring, address(stream), number, pairs)
            lower = ptx("mov.u32 $0, %lanemask_lt;")()
            meanings = []
            step = _STEP.format(
                mask=(1 << self.bits) - 1,
                bits=self.bits,
                last=_RING - 2,
                entry_shift=1 + self._words,
                fields=_ONE_WORD if self.expand is None else _TWO_WORDS,
            )
            for table in tables:
                meaning, state, position = mgpu_utils.inline_ptx(
                    step,
                    state,
                    position,
                    table,
                    ring,
                    lower,
                    result_types=[word_type()] * 3,
                    has_side_effects=True,
                    convergent=True,
                )
                meanings.append(meaning)
            return [from_scalar(value) for value in (state, position, *filled, *meanings)]

        refs = (self.table, self.rings, self.stream)
        found = apply(*refs, self.warps.index(), *carry, *offsets)
        return tuple(found[:count]), list(found[count:])

    @staticmethod
    def _ring(rings: ir.Value, number: ir.Value) -> ir.Value:
        """Address of the lane's warp's ring."""
        align = ptx(
            f"{{ .reg .b32 a; add.u32 $0, $1, {_RING - 1}; and.b32 $0, $0, {-_RING}; "
            f"shr.b32 a, $2, 5; and.b32 a, a, {WARPS - 1}; mad.lo.u32 $0, a, {_RING}, $0; }}"
        )
        return align(address(rings, shared=True), number)

    def _steps_in_jax(
        self, carry: Carry, offsets: Sequence[jax.Array]
    ) -> tuple[Carry, list[jax.Array]]:
        state, position = carry
        table, stream = self.table[...].reshape(-1, self._words), self.stream[...]
        meanings = []
        for offset in offsets or [jnp.zeros_like(state)] * STEPS:
            slot = state & jnp.uint32((1 << self.bits) - 1)
            words = table[slot + offset // jnp.uint32(4 * self._words)]
            fields, meaning = words[:, 0], words[:, -1]
            meanings.append(meaning)
            frequency, addend = fields & 0xFFFF, fields >> 16
            if self.expand is None:
                frequency, addend = fields >> _FREQUENCY_SHIFT, fields & _OFFSET_MASK
            state = frequency * (state >> self.bits) + addend
            need = (state < 1 << 16).reshape(WARPS, WARP_LANES)
            count = jnp.cumsum(need, axis=-1, dtype=jnp.uint32)
            place = position + (count - need).reshape(-1)
            word = stream[jnp.minimum(place, jnp.uint32(stream.size - 1))].astype(jnp.uint32)
            state = jnp.where(need.reshape(-1), state << 16 | word, state)
            position += jnp.repeat(count[:, -1], WARP_LANES)
        return (state, position), meanings


def _refilled(
    position: ir.Value,
    filled: list[ir.Value],
    ring: ir.Value,
    stream: ir.Value,
    number: ir.Value,
    pairs: int,
) -> list[ir.Value]:
    """Puts the block that is at hand into a ring with room for it, and asks for the next.

    Args:
      position: in bytes from the ring's beginning, without wrapping.
      filled: how far the ring is filled, in bytes likewise; the pair of words that the lane asks
        for next; the block's words that the lane has.
    """
    registers = [f"${2 + load}" for load in range(_LOADS)]
    first = 2 + _LOADS
    at = first + 2 + _LOADS
    copies = " ".join(f"mov.b32 ${place}, ${first + place};" for place in range(2 + _LOADS))
    stores = " ".join(
        f"st.shared.b32 [r+{4 * WARP_LANES * load}], {register};"
        for load, register in enumerate(registers)
    )
    loads = " ".join(
        _LOAD.format(last_pair=pairs - 1, stream=f"${at + 2}", register=register)
        for register in registers
    )
    template = (
        f"{{ .reg .b32 a, n, r; .reg .b64 p; .reg .pred full; {copies} "
        f"sub.u32 a, $0, ${at}; setp.ge.u32 full, a, {2 * _BLOCK}; @full bra.uni done; "
        f"bar.warp.sync 0xffffffff; and.b32 r, $0, {_RING - 1}; or.b32 r, r, ${at + 1}; "
        f"and.b32 a, ${at + 3}, 31; shl.b32 a, a, 2; add.u32 r, r, a; {stores} "
        f"add.u32 $0, $0, {_BLOCK}; mov.b32 n, $1; {loads} mov.b32 $1, n; "
        "bar.warp.sync 0xffffffff; done: mov.b32 a, 0; }"
    )
    return list(
        mgpu_utils.inline_ptx(
            template,
            *filled,
            position,
            ring,
            stream,
            number,
            result_types=[word_type()] * (2 + _LOADS),
            has_side_effects=True,
            convergent=True,
        )
    )


def table_shape(bits: int, tables: int, words: int, parts: int) -> tuple[int, ...]:
    """Shape of the tables' buffer in shared memory.

    Args:
      bits, tables: as of `RansLanes`.
      words: of an entry, 2 where symbols have meanings, else 1.
      parts: in which it is filled.
    """
    return (parts, (tables << bits) // parts, words)
