"""What a kernel asks the L2 cache for on behalf of the kernels after it.

Between two products that keep the memory busy a step has moments in which nothing is read: a
launch, the sum of a kernel's warps, attention. Weights do not depend on what is computed, nor do
past keys and values, so a kernel at its end can ask for what the next one reads.
"""

import dataclasses
from collections.abc import Sequence

import jax

from codecjax.codecs.window_pool import place_of
from codecjax.tiles import Residency, TiledMatrix
from kernels_pallas.mosaic import SMS

# What each CTA asks for is a multiple of this.
_GRAIN = 128
_BY_TILE = ("words", "escapes")


@dataclasses.dataclass(frozen=True)
class Asking:
    """How much a kernel asks for: more takes as long as it saves.

    Only its last CTAs ask. What is asked for while others read their own makes that come later.

    Attributes:
      most_bytes: of all CTAs together.
      most_ctas: that ask.
    """

    most_bytes: int
    most_ctas: int

    @classmethod
    def of(cls, dense: bool) -> "Asking":
        """What was fastest for kernels with such weights, see experiments/records/h100/NOTES.md."""
        return cls(7 * 2**20, SMS) if dense else cls(5 * 2**20, 2 * SMS)


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Bytes of an array that are asked for.

    Attributes:
      array: number of the array among those that the kernel is given.
      start, size: in bytes, multiples of 16.
    """

    array: int
    start: int
    size: int

    def share(self, ctas: int) -> int:
        """Bytes that each of so many CTAs asks for, the last of them perhaps less."""
        return -(-self.size // (ctas * _GRAIN)) * _GRAIN


def stretches(
    following: Sequence[TiledMatrix | jax.Array], residency: Residency | None, most_bytes: int
) -> tuple[tuple[jax.Array, ...], tuple[Stretch, ...]]:
    """Arrays, and the stretches of them that hold the first bytes of what is read next.

    What of matrices is in pages is not known here, so with pages none of them is asked for; nor are
    those of codecs whose kernels do not read as they multiply.

    Args:
      following: what is read, of which arrays come first, and whole or not at all.
      residency: of the matrices.
      most_bytes: of all stretches.
    """
    arrays: list[jax.Array] = []
    found: list[Stretch] = []
    left = most_bytes
    for each in following:
        if isinstance(each, jax.Array) and each.nbytes <= left and each.nbytes % 16 == 0:
            found.append(Stretch(len(arrays), 0, each.nbytes))
            arrays.append(each)
            left -= each.nbytes
    if residency is not None and residency.pages is not None:
        return tuple(arrays), tuple(found)
    for t in (each for each in following if isinstance(each, TiledMatrix)):
        names = ("dense",) if t.is_dense else _BY_TILE if t.codec == "window" else ()
        for name in names:
            array, start = t.arrays[name], 0
            size = array.nbytes
            if not t.is_dense:
                place, of_slot = place_of(t), array.nbytes // array.shape[0]
                start, size = place.first_slot * of_slot, place.slots * of_slot
            size = min(size, left) // 16 * 16
            if not size or start % 16:
                continue
            known = (number for number, other in enumerate(arrays) if other is array)
            number = next(known, len(arrays))
            if number == len(arrays):
                arrays.append(array)
            found.append(Stretch(number, start, size))
            left -= size
    return tuple(arrays), tuple(found)
