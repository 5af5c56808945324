"""How a warp's lanes get at memory one by one: loads, stores, and requests to the L2 cache.

As in `lanes`, methods have two forms: inline Mosaic GPU code, and plain JAX.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, scf
from jax.experimental.mosaic.gpu import utils as mgpu_utils
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs.window_layout import VECTOR, in_fours
from kernels_pallas.emit import (
    LANE_LAYOUT,
    LANES,
    address,
    constant,
    emit_transpose,
    from_scalar,
    scalar,
    vector_words,
    word_type,
)
from kernels_pallas.lanes import WORDS_TYPE, Lanes


def word_address(ref: ir.Value, index: ir.Value) -> ir.Value:
    """Of 32-bit word `index` of a ref in device memory."""
    long = ir.IntegerType.get_signless(64)
    offset = arith.shli(arith.extui(long, index), arith.constant(long, 2))
    return arith.addi(address(ref), offset)


def as_words(values: jax.Array) -> jax.Array:
    """Flat uint32 of uint32, int32 or pairs of bf16 or uint16."""
    if values.dtype.itemsize == 2:
        values = values.reshape(-1, 2)
    return jax.lax.bitcast_convert_type(values, jnp.uint32).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Loads:
    """Where `LaneMemory.load` finds words.

    Attributes:
      index: uint32[128], a word's number in a flat ref.
      offsets: in words from `index`, of each load.
      vector: words of each load, 1, 2 or 4; index and offsets are multiples of it.
      early: whether they are asked for where the program says so. Others may be asked for as late
        as where a branch needs them, and are waited for there.
    """

    index: jax.Array
    offsets: tuple[int, ...]
    vector: int
    early: bool = False

    @property
    def count(self) -> int:
        """Of the words."""
        return self.vector * len(self.offsets)

    def read(self, flat: jax.Array) -> list[jax.Array]:
        """The words, for the interpreter."""
        places = [offset + part for offset in self.offsets for part in range(self.vector)]
        return list(flat[jnp.stack([self.index + jnp.uint32(place) for place in places])])

    def emit(self, start: ir.Value) -> list[ir.Value]:
        """Emits the loads, given where word `index` is."""
        suffix, names = vector_words(0, self.vector)
        # What is read-only for the whole kernel may be loaded later, whatever the program says.
        kind = "global" if self.early else "global.nc"
        found: list[ir.Value] = []
        for offset in self.offsets:
            found += mgpu_utils.inline_ptx(
                f"ld.{kind}.{suffix} {names}, [${self.vector}+{4 * offset}];",
                start,
                result_types=[word_type()] * self.vector,
                has_side_effects=self.early,
            )
        return found


def unit_words(number: jax.Array, lane: jax.Array, count: int) -> tuple[Loads, ...]:
    """Loads of a lane's `count` words of unit `number`, in an array of such units.

    Args:
      number, lane: uint32[128]; the lane's number in the unit.
    """
    first, end_of_fours = number * jnp.uint32(count * LANES), in_fours(count) * LANES
    fours = tuple(range(0, end_of_fours, VECTOR * LANES))
    rest = tuple(range(end_of_fours, count * LANES, LANES))
    loads = (
        Loads(first + lane * jnp.uint32(VECTOR), fours, VECTOR),
        Loads(first + lane, rest, 1),
    )
    return tuple(each for each in loads if each.offsets)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `LaneMemory.load_one_of` may load.

    Attributes:
      ref: in device memory, as for `load`.
      loads: from it.
    """

    ref: Any
    loads: tuple[Loads, ...]

    def read(self, count: int) -> list[jax.Array]:
        """The words, and zeros to make so many, for the interpreter."""
        flat = as_words(self.ref[...])
        found = [word for each in self.loads for word in each.read(flat)]
        return found + [jnp.zeros_like(found[0])] * (count - len(found))

    def emit(self, ref: ir.Value, indices: Sequence[ir.Value], count: int) -> list[ir.Value]:
        """Emits the loads, and zeros to make so many."""
        found: list[ir.Value] = []
        for each, index in zip(self.loads, indices, strict=True):
            found += each.emit(word_address(ref, index))
        return found + [constant(0)] * (count - len(found))


@dataclasses.dataclass(frozen=True)
class LaneMemory(Lanes):
    """Loads and stores of which each lane has its own place."""

    def load(
        self,
        ref: Any,
        index: jax.Array,
        offsets: Sequence[int],
        vector: int = 1,
        early: bool = False,
    ) -> list[jax.Array]:
        """Each lane's words of a ref in device memory that nobody writes meanwhile.

        Args:
          ref: uint32, int32, or bf16 or uint16 (two a word), of any shape.
          index, offsets, vector, early: see `Loads`.
        """
        return self.load_all(ref, (Loads(index, tuple(offsets), vector, early),))

    def load_all(self, ref: Any, loads: tuple[Loads, ...]) -> list[jax.Array]:
        """`load` of several kinds, one after another."""
        return self.load_one_of([Choice(ref, loads)], [], sum(each.count for each in loads))

    def load_one_of(
        self, choices: Sequence["Choice"], chosen: Sequence[jax.Array], count: int
    ) -> list[jax.Array]:
        """`load` of one of several refs, each warp's own choice.

        Args:
          choices: what may be loaded.
          chosen: uint32[128] for all but the last, not 0 where the warp's choice is this or an
            earlier one.
          count: words to return; after those of a shorter choice come zeros.
        """
        if self.interpret:
            *earlier, found = [choice.read(count) for choice in choices]
            for words, here in zip(reversed(earlier), reversed(chosen), strict=True):
                pairs = zip(words, found, strict=True)
                found = [jnp.where(here != 0, one, other) for one, other in pairs]
            return found
        words = [WORDS_TYPE] * count
        indices = [[each.index for each in choice.loads] for choice in choices]
        types = (
            *(plgpu.RefType(),) * len(choices),
            *(LANE_LAYOUT,) * (sum(map(len, indices)) + len(chosen)),
        )

        @plgpu.inline_mgpu(arg_types=types, return_type=words)
        def apply(_: Any, *arguments: Any) -> Any:
            refs, arrays = arguments[: len(choices)], iter(arguments[len(choices) :])
            starts = [[scalar(next(arrays).registers.item()) for _ in each] for each in indices]
            flags = [scalar(flag.registers.item()) for flag in arrays]

            def emit(number: int) -> list[ir.Value]:
                choice = choices[number]
                if number == len(choices) - 1:
                    return choice.emit(refs[number], starts[number], count)
                zero = constant(0)
                here = arith.cmpi(arith.CmpIPredicate.ne, flags[number], zero)
                branch = scf.IfOp(here, [word_type()] * count, has_else=True)
                with ir.InsertionPoint(branch.then_block):
                    scf.yield_(choice.emit(refs[number], starts[number], count))
                with ir.InsertionPoint(branch.else_block):
                    scf.yield_(emit(number + 1))
                return list(branch.results)

            return [from_scalar(word) for word in emit(0)]

        flat = [index for each in indices for index in each]
        return list(apply(*(choice.ref for choice in choices), *flat, *chosen))

    def store(
        self,
        ref: Any,
        index: jax.Array,
        offsets: Sequence[int],
        words: Sequence[jax.Array],
        where: jax.Array,
        transposed: bool = False,
    ) -> None:
        """Stores lanes' words where `where` (uint32[128]) is not 0; not for the interpreter.

        Args:
          ref, index, offsets: as in `load`.
          words: uint32[128], one for each offset, or four if `transposed`.
          where: which lanes store; if `transposed`, all of a warp or none.
          transposed: whether to store the transpose of the words, see `Warps.transpose`.
        """
        suffix, names = vector_words(1, VECTOR if transposed else 1)

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), *(LANE_LAYOUT,) * (3 + len(words))))
        def apply(_: Any, ref: ir.Value, *arrays: Any) -> None:
            number, index, mask, *values = (scalar(array.registers.item()) for array in arrays)
            zero = constant(0)
            branch = scf.IfOp(arith.cmpi(arith.CmpIPredicate.ne, mask, zero))
            with ir.InsertionPoint(branch.then_block):
                start = word_address(ref, index)
                if transposed:
                    values = emit_transpose(number, values)
                width = len(values) // len(offsets)
                for each, offset in enumerate(offsets):
                    mgpu_utils.inline_ptx(
                        f"st.global.{suffix} [$0+{4 * offset}], {names};",
                        start,
                        *values[width * each : width * (each + 1)],
                        has_side_effects=True,
                    )
                scf.yield_([])

        apply(ref, self.index(), index, where, *words)

    def store_shared(self, ref: Any, index: jax.Array, words: Sequence[jax.Array]) -> None:
        """Stores lanes' neighbouring words, 1, 2 or 4 of uint32[128], in shared memory.

        Not for the interpreter. They begin at `index`, a multiple of their number.
        """
        suffix, names = vector_words(1, len(words))

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), *(LANE_LAYOUT,) * (1 + len(words))))
        def apply(_: Any, ref: ir.Value, *arrays: Any) -> None:
            index, *values = (scalar(array.registers.item()) for array in arrays)
            offset = arith.shli(index, constant(2))
            mgpu_utils.inline_ptx(
                f"st.shared.{suffix} [$0], {names};",
                arith.addi(address(ref, shared=True), offset),
                *values,
                has_side_effects=True,
            )

        apply(ref, index, *words)

    def keep(self, ref: Any, number: jax.Array, words: Sequence[jax.Array]) -> None:
        """Stores lanes' words, uint32[128] each, in shared memory, a lane's next to one another.

        Unlike an assignment to the ref it waits for nobody; who reads them must.

        Args:
          ref: uint32 ref of which an element along the first axis holds all lanes' words.
          number: of that element, int32 scalar.
          words: of each lane.
        """
        if self.interpret:
            ref[number] = jnp.stack(words, axis=-1).reshape(ref.shape[1:])
            return
        first = (number * LANES).astype(jnp.uint32) + self.index()
        self.store_shared(ref, first * jnp.uint32(len(words)), words)

    def prefetch(self, ref: Any, number: jax.Array, start: int, size: int, share: int) -> None:
        """Asks the L2 cache for share `number` of bytes of a ref in device memory.

        Args:
          ref: of any shape.
          number: int32 scalar; shares beyond the last ask for nothing.
          start, size: of the bytes; multiples of 16.
          share: bytes of one, a multiple of 16.
        """
        if self.interpret:
            return

        @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), LANE_LAYOUT, LANE_LAYOUT))
        def apply(_: Any, ref: ir.Value, lane: Any, number: Any) -> None:
            word, long = word_type(), ir.IntegerType.get_signless(64)
            first = arith.muli(scalar(number.registers.item()), arith.constant(word, share))
            zero, end = arith.constant(word, 0), arith.constant(word, size)
            one_lane = arith.cmpi(arith.CmpIPredicate.eq, scalar(lane.registers.item()), zero)
            some = arith.cmpi(arith.CmpIPredicate.ult, first, end)
            branch = scf.IfOp(arith.andi(one_lane, some))
            with ir.InsertionPoint(branch.then_block):
                offset = arith.addi(arith.extui(long, first), arith.constant(long, start))
                mgpu_utils.inline_ptx(
                    "cp.async.bulk.prefetch.L2.global [$0], $1;",
                    arith.addi(address(ref), offset),
                    arith.minui(arith.constant(word, share), arith.subi(end, first)),
                    has_side_effects=True,
                )
                scf.yield_([])

        apply(ref, self.index(), self.in_each(number))
