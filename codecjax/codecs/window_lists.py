"""Escapes of single lanes of a `window` unit, found without reading those of all others.

In a record (`window_records`) the entries of one warp come round by round: the n-th entry that
says "more" is followed, in its lane, by the n-th of those after the first round. So each lane's
entries are a linked list, in order of registers and halves, and where a link leads is a count of
bits. A lane has at most 64 entries, of which every one has a second link, eight entries on: so a
weight's entry is found, or found missing, by 7 + 9 reads.

A damaged record only leads to other entries of the same unit.
"""

import dataclasses

import jax
import jax.numpy as jnp

from codecjax.codecs.window_layout import REGISTERS
from codecjax.codecs.window_records import (
    EXPONENT_SHIFT,
    MORE,
    RECORD_HEADER,
    entries_that_fit,
)

NOT_ESCAPED = 256
_PER_LINK = 8
_MOST_LINKS = 2 * REGISTERS // _PER_LINK - 1
# An entry of a table: exponent, from this bit on its place (half | register << 1, above all of
# them where there is no entry), and from this bit on the number of the next entry.
_PLACE, _NEXT = 8, 16
_NO_PLACE = 2 * REGISTERS
_ENTRIES_A_WORD, _WORD_BITS = 2, 32


@dataclasses.dataclass(frozen=True)
class EscapeLists:
    """Lists of the escapes of some lanes of several units.

    Attributes:
      entries: uint32[units * numbers], for each unit its entries' exponents, places and next
        entries by their numbers; the last number of each unit is no entry's.
      links: uint32[units * numbers], the number of the eighth entry from there on, and its place.
      first: int32[units, lanes], where in `entries` the lists of the lanes begin.
      numbers: of each unit.
    """

    entries: jax.Array
    links: jax.Array
    first: jax.Array
    numbers: int

    def find(self, register: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The entries of the low and of the high halves of some registers.

        Args:
          register: uint32[units, registers].

        Returns:
          uint32[units, registers, lanes] each: the exponent, or NOT_ESCAPED.
        """
        (units, lanes), registers = self.first.shape, register.shape[1]
        unit = self.numbers * jnp.arange(units)[:, None, None]
        low = 2 * register[..., None]
        here = jnp.broadcast_to(self.first[:, None], (units, registers, lanes))
        for _ in range(_MOST_LINKS):
            link = _at(self.links, here)
            here = jnp.where(link >> _PLACE <= low, unit + _low_byte(link), here)
        found = [jnp.full(here.shape, NOT_ESCAPED, jnp.uint32)] * 2
        # The entry of the high half may be the one that the last link would have led to.
        for _ in range(_PER_LINK + 1):
            entry = _at(self.entries, here)
            place = (entry >> _PLACE) & 0xFF
            found = [
                jnp.where(place == low + half, entry & 0xFF, each)
                for half, each in enumerate(found)
            ]
            here = unit + _low_byte(entry >> _NEXT)
        return found[0], found[1]


def _at(flat: jax.Array, place: jax.Array) -> jax.Array:
    return flat.at[place].get(mode="promise_in_bounds")


def _low_byte(word: jax.Array) -> jax.Array:
    return (word & 0xFF).astype(jnp.int32)


def _bits(mask: jax.Array) -> jax.Array:
    return jax.lax.population_count(mask)


def _below(number: jax.Array) -> jax.Array:
    """uint32 of which the lowest `number` bits are set, uint32 up to 32."""
    return (jnp.uint32(1) << number) - jnp.uint32(1)


def _more_bits(words: jax.Array) -> jax.Array:
    """uint32[units, n]: bit i of word j is set where entry 32 * j + i says "more"."""
    at_once = _WORD_BITS // _ENTRIES_A_WORD
    padded = jnp.pad(words, ((0, 0), (0, -words.shape[1] % at_once)))
    by_word = padded.reshape(len(words), -1, at_once)
    both = jnp.where(by_word & MORE, jnp.uint32(1), jnp.uint32(0))
    both |= jnp.where(by_word & (MORE << 16), jnp.uint32(2), jnp.uint32(0))
    shifts = _ENTRIES_A_WORD * jnp.arange(at_once, dtype=jnp.uint32)
    return (both << shifts).sum(axis=-1, dtype=jnp.uint32)


def _before(more: jax.Array, number: jax.Array) -> jax.Array:
    """uint32[units, n]: how many bits of uint32[units, words] are before those of numbers."""
    count = jnp.zeros_like(number)
    for word in range(more.shape[1]):
        before = jnp.clip(number.astype(jnp.int32) - _WORD_BITS * word, 0, _WORD_BITS)
        count += _bits(more[:, word, None] & _below(before.astype(jnp.uint32)))
    return count


def escape_lists(records: jax.Array, warp: jax.Array, lane: jax.Array) -> EscapeLists:
    """The lists of some lanes of one warp of each of several units.

    Args:
      records: uint32[units, RECORD].
      warp: int32[units].
      lane: uint32[units, lanes], numbers of lanes in their warp.
    """
    units, record = records.shape
    none = entries_that_fit(record)
    words = records[:, RECORD_HEADER : RECORD_HEADER + -(-none // _ENTRIES_A_WORD)]
    bitmap = jnp.take_along_axis(records, warp[:, None], axis=1)
    first = (records[:, 4:RECORD_HEADER] >> (8 * warp[:, None]).astype(jnp.uint32)) & 0xFF
    more = _more_bits(words)
    number = jnp.arange(none + 1, dtype=jnp.uint32)
    both = jnp.pad(words, ((0, 0), (0, 1)))[:, number // _ENTRIES_A_WORD]
    entry = (both >> (16 * (number % _ENTRIES_A_WORD))) & 0xFFFF
    following = first + _bits(bitmap) + _before(more, number[None]) - _before(more, first)
    following = jnp.where(entry & MORE, jnp.minimum(following, none), none)
    place = entry & (_NO_PLACE - 1)
    entries = (entry >> EXPONENT_SHIFT) | place << _PLACE | following << _NEXT
    no_entry = jnp.uint32(_NO_PLACE << _PLACE | none << _NEXT)
    entries = jnp.where(number == none, no_entry, entries).reshape(-1)
    unit = (none + 1) * jnp.arange(units)[:, None]
    here = jnp.broadcast_to(unit + jnp.arange(none + 1), (units, none + 1))
    for _ in range(_PER_LINK):
        here = unit + _low_byte(_at(entries, here) >> _NEXT)
    number_there = (here - unit).astype(jnp.uint32)
    links = (number_there | ((_at(entries, here) >> _PLACE) & 0xFF) << _PLACE).reshape(-1)
    start = jnp.minimum(first + _bits(bitmap & _below(lane)), none)
    start = jnp.where((bitmap >> lane) & 1, start, none)
    return EscapeLists(entries, links, unit + start.astype(jnp.int32), none + 1)
