"""Emission of what one lane does with scalars: the parts of `lanes` and `warps` in MLIR.

Values are of type i32, one a lane, unless said otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, llvm, scf, vector
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import window_layout, window_records

LANES = window_layout.LANES
LANE_LAYOUT = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)


def scalar(register: ir.Value) -> ir.Value:
    first = ir.DenseI64ArrayAttr.get([0])
    return vector.extract(register, dynamic_position=[], static_position=first)


def from_scalar(value: ir.Value, is_signed: bool | None = False) -> Any:
    register = vector.broadcast(ir.VectorType.get((1,), value.type), value)
    registers = np.array([register], dtype=object)
    return mgpu.FragmentedArray(
        _registers=registers, _layout=LANE_LAYOUT.to_mgpu(), _is_signed=is_signed
    )


def word_type() -> ir.Type:
    """The type of most values here."""
    return ir.IntegerType.get_signless(32)


def constant(value: int) -> ir.Value:
    """A word that is the same for all."""
    return arith.constant(word_type(), value)


def address(ref: ir.Value, shared: bool = False) -> ir.Value:
    """Where a ref begins: i32 in shared memory, i64 in device memory."""
    kind = ir.IntegerType.get_signless(32 if shared else 64)
    return llvm.ptrtoint(kind, mgpu_utils.memref_ptr(ref))


def vector_words(first: int, count: int) -> tuple[str, str]:
    """PTX for a type of so many words, and for the operands from number `first` on."""
    if count == 1:
        return "b32", f"${first}"
    operands = ", ".join(f"${first + number}" for number in range(count))
    return f"v{count}.b32", f"{{{operands}}}"


def ptx(template: str) -> Callable[..., ir.Value]:
    def emit(*operands: ir.Value) -> ir.Value:
        word = ir.IntegerType.get_signless(32)
        return mgpu_utils.inline_ptx(template, *operands, result_types=word)

    return emit


def index_of(word: ir.Value) -> ir.Value:
    return arith.index_castui(ir.IndexType.get(), word)


def field(bits: ir.Value, shift: int, mask: int) -> ir.Value:
    word = ir.IntegerType.get_signless(32)
    shifted = arith.shrui(bits, arith.constant(word, shift)) if shift else bits
    return arith.andi(shifted, arith.constant(word, mask))


def shifted(bits: ir.Value, shift: int) -> ir.Value:
    return arith.shrui(bits, arith.constant(ir.IntegerType.get_signless(32), shift))


_POPULATION = ptx("popc.b32 $0, $1;")
# By 32 and more, which a negative number is, to 0.
_SHIFT_OUT = ptx("shl.b32 $0, $1, $2;")
# Registers of which one comparison finds the group that an escape is in.
_GROUP = 4
_PATCH_GROUP = (
    "{ .reg .pred p; setp.eq.u32 p, $12, %d; "
    "mov.b32 $0, $4; mov.b32 $1, $5; mov.b32 $2, $6; mov.b32 $3, $7; "
    "@p xor.b32 $0, $4, $8; @p xor.b32 $1, $5, $9; "
    "@p xor.b32 $2, $6, $10; @p xor.b32 $3, $7, $11; }"
)


def shuffle(value: ir.Value, lane: ir.Value) -> ir.Value:
    """The value of each lane's choice of the warp's lanes, modulo 32."""
    return mgpu_utils.inline_ptx(
        "shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;",
        value,
        lane,
        result_types=ir.IntegerType.get_signless(32),
        has_side_effects=True,
        convergent=True,
    )


SWAP = ptx("prmt.b32 $0, $1, 0, 0x2301;")
MERGE = ptx("lop3.b32 $0, 0x807f807f, $1, $2, 0xCA;")


class _Word:
    """A value with the operators that `window_layout.unpack` uses."""

    def __init__(self, value: ir.Value) -> None:
        self.value = value

    def _with(self, operation: Callable[..., ir.Value], other: Any) -> "_Word":
        if not isinstance(other, _Word):
            signed = int(np.uint32(other).view(np.int32))
            other = _Word(arith.constant(ir.IntegerType.get_signless(32), signed))
        return _Word(operation(self.value, other.value))

    def __and__(self, other: Any) -> "_Word":
        return self._with(arith.andi, other)

    def __or__(self, other: Any) -> "_Word":
        return self._with(arith.ori, other)

    def __lshift__(self, other: Any) -> "_Word":
        return self._with(arith.shli, other)

    def __rshift__(self, other: Any) -> "_Word":
        return self._with(arith.shrui, other)

    def __add__(self, other: Any) -> "_Word":
        return self._with(arith.addi, other)

    def __mul__(self, other: Any) -> "_Word":
        return self._with(arith.muli, other)


def emit_unpack(words: Sequence[ir.Value], bias: Sequence[ir.Value], width: int) -> list[ir.Value]:
    """Emits `window_layout.unpack`."""
    unpacked: Any = window_layout.unpack(
        [_Word(word) for word in words],  # type: ignore[misc]
        [_Word(each) for each in bias],  # type: ignore[misc]
        width,
        lambda word: _Word(SWAP(word.value)),  # type: ignore
        lambda mantissas, exponents: _Word(MERGE(mantissas.value, exponents.value)),  # type: ignore
    )
    return [word.value for word in unpacked]


def emit_transpose(lane: ir.Value, words: Sequence[ir.Value]) -> list[ir.Value]:
    """Emits `Warps.transpose`; `lane` is the lane's number."""
    word, values = ir.IntegerType.get_signless(32), list(words)
    for distance in (1, 2):
        bit = arith.andi(lane, arith.constant(word, distance))
        upper = arith.cmpi(arith.CmpIPredicate.ne, bit, arith.constant(word, 0))
        for low in range(len(values)):
            if low & distance:
                continue
            high = low + distance
            sent = arith.select(upper, values[low], values[high])
            received = mgpu_utils.shfl_bfly(sent, distance)
            values[low] = arith.select(upper, received, values[low])
            values[high] = arith.select(upper, values[high], received)
    return values


def emit_patch(
    header_at: Callable[[ir.Value], ir.Value],
    entry_at: Callable[[ir.Value], ir.Value],
    warp: ir.Value,
    lane: ir.Value,
    *values: ir.Value,
    record: int,
    ahead: int = 1,
) -> list[ir.Value]:
    """Emits a lane's `Lanes.patch`.

    Of a damaged record it takes other entries, but none beyond it, and as many rounds as a lane
    has weights at most.

    Args:
      header_at: emits the word of the record's header at an index, the same for all of a warp.
      entry_at: emits each lane's own entry, by number; its high half does not count.
      warp: which of its unit's four warps the warp decodes.
      lane: number in the warp.
      *values: the 32 registers.
      record: RECORD.
      ahead: rounds that are made without asking whether there are any. So what they wait for comes
        while words are unpacked.
    """
    word = ir.IntegerType.get_signless(32)
    last = arith.constant(word, 2 * (record - window_records.RECORD_HEADER) - 1)
    zero, one = arith.constant(word, 0), arith.constant(word, 1)
    lower_lanes = arith.subi(arith.shli(one, lane), one)

    def look_up(bitmap: ir.Value, first: ir.Value) -> tuple[ir.Value, ...]:
        """Where a lane's weight is and what it is xored with; then the next round's state."""
        mine = arith.trunci(ir.IntegerType.get_signless(1), arith.shrui(bitmap, lane))
        rank = _POPULATION(arith.andi(bitmap, lower_lanes))
        position = arith.select(mine, arith.minui(arith.addi(first, rank), last), zero)
        entry = entry_at(position)
        more = arith.select(mine, field(entry, 0, window_records.MORE), zero)
        following = mgpu_utils.inline_ptx(
            "{ .reg .pred p; setp.ne.u32 p, $1, 0; vote.sync.ballot.b32 $0, p, 0xffffffff; }",
            more,
            result_types=word,
            has_side_effects=True,
            convergent=True,
        )
        mask = field(entry, window_records.DIFFERENCE_SHIFT - 7, 0x7F80)
        mask = arith.select(mine, mask, zero)
        return entry, mask, following, arith.addi(first, _POPULATION(bitmap))

    def patched(values: Sequence[ir.Value], entry: ir.Value, mask: ir.Value) -> list[ir.Value]:
        # 16 for each half that is before the weight's in its group.
        before = arith.shli(field(entry, 0, 2 * _GROUP - 1), arith.constant(word, 4))
        masks = [
            _SHIFT_OUT(mask, arith.subi(before, arith.constant(word, 32 * place)))
            for place in range(_GROUP)
        ]
        shift = window_records.REGISTER_SHIFT + _GROUP.bit_length() - 1
        group = field(entry, shift, window_layout.REGISTERS // _GROUP - 1)
        result: list[ir.Value] = []
        for start in range(0, len(values), _GROUP):
            result += mgpu_utils.inline_ptx(
                _PATCH_GROUP % (start // _GROUP),
                *values[start : start + _GROUP],
                *masks,
                group,
                result_types=[word] * _GROUP,
            )
        return result

    starts = header_at(arith.constant(word, window_records.WARPS))
    first = field(arith.shrui(starts, arith.shli(warp, arith.constant(word, 3))), 0, 0xFF)
    bitmap, found = header_at(warp), []
    for _ in range(ahead):
        entry, mask, bitmap, first = look_up(bitmap, first)
        found.append((entry, mask))
    for entry, mask in found:
        values = tuple(patched(values, entry, mask))
    rounds = arith.constant(word, 2 * window_layout.REGISTERS)
    state = [rounds, bitmap, first, *values]
    types = [word] * len(state)
    loop = scf.WhileOp(types, state)
    before = ir.Block.create_at_start(loop.before, types)
    with ir.InsertionPoint(before):
        rounds, bitmap = list(before.arguments)[:2]
        there_are = arith.cmpi(arith.CmpIPredicate.ne, bitmap, zero)
        going_on = arith.andi(there_are, arith.cmpi(arith.CmpIPredicate.ne, rounds, zero))
        scf.condition(going_on, list(before.arguments))
    after = ir.Block.create_at_start(loop.after, types)
    with ir.InsertionPoint(after):
        rounds, bitmap, first, *rest = after.arguments
        entry, mask, bitmap, first = look_up(bitmap, first)
        scf.yield_([arith.subi(rounds, one), bitmap, first, *patched(rest, entry, mask)])
    return list(loop.results)[3:]
