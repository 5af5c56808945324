"""Escape records of `window` units: which weights' exponents are elsewhere, and what they are.

An entry has what its weight's exponent is xored with: that of digit 0, which is stored for it,
and so decoded.

A record is uint32[RECORD]. Lanes, registers and halves are those of `window_layout`; the 128
lanes are 4 warps of 32.

    words 0..3   word w is the bitmap of warp w: bit i is set where lane 32*w + i has an escape
    word 4       byte w (bits 8*w..8*w + 7): number of the first entry of warp w
    words 5..    16-bit entries, two a word, the low half first; unused ones are 0:
                 half | register << 1 | more << 6 | difference << 8

Entries of the warps follow one another. Within a warp come the first escape of each lane that
has one, in order of lanes; then the second escape of each lane whose first entry says "more";
then the third, and so on. A lane's escapes are in order of registers, then halves. So the
bitmap says whose the first entries are, a round's "more" bits whose the next round's are, and
all lanes of a warp find their entries by counting bits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from codecjax.codecs.window_layout import LANES, REGISTERS

WARPS, WARP_LANES = 4, 32
RECORD_HEADER = 5
REGISTER_SHIFT = 1
MORE = 1 << 6
DIFFERENCE_SHIFT = 8
# Number of entries whose beginnings fit the bytes of word 4.
MOST_ENTRIES = 255
# RECORD is a multiple of this: kernels are compiled for one RECORD, so few different ones are
# wanted, and they copy 4 words at a time. Of the 8192 weights of a unit of Gaussian rows, about
# 107 are escapes at width 8, 16 at width 11 and 0.5 at width 16.
RECORD_STEP = {8: 16, 11: 24, 16: 8}


def entries_that_fit(record: int) -> int:
    """Number of escapes for which a record of uint32[record] has room."""
    return min(2 * (record - RECORD_HEADER), MOST_ENTRIES)


def _bits(mask: jax.Array) -> jax.Array:
    """uint32: the number of set bits of uint32 `mask`."""
    return jax.lax.population_count(mask)


def _bit_number(mask: jax.Array, rank: jax.Array) -> jax.Array:
    """uint32: position of the set bit of uint32 `mask` that has `rank` set bits below it."""
    position = jnp.zeros_like(rank)
    for width in (16, 8, 4, 2, 1):
        below = _bits((mask >> position) & jnp.uint32((1 << width) - 1))
        above = rank >= below
        position += jnp.where(above, jnp.uint32(width), jnp.uint32(0))
        rank -= jnp.where(above, below, jnp.uint32(0))
    return position


def _positions(record: int) -> jax.Array:
    """uint32[entries]: the number of each entry."""
    return jnp.arange(2 * (record - RECORD_HEADER), dtype=jnp.uint32)


def _warp_of(position: jax.Array, first: jax.Array) -> jax.Array:
    """uint32[..., entries]: the warp of each entry, given the warps' first, uint32[..., 4]."""
    return (position >= first[..., 1:, None]).sum(axis=-2, dtype=jnp.uint32)


def _for_warp(values: jax.Array, warp: jax.Array) -> jax.Array:
    """[..., entries]: of each entry's warp, the value in [..., 4]."""
    chosen = values[..., :1]
    for number in range(1, WARPS):
        chosen = jnp.where(warp == number, values[..., number, None], chosen)
    return chosen


def _joined(values: jax.Array, width: int) -> jax.Array:
    """uint32[...]: values of `width` bits each, uint32[..., n], side by side in one word."""
    return (values << (width * jnp.arange(values.shape[-1], dtype=jnp.uint32))).sum(
        axis=-1, dtype=jnp.uint32
    )


def write(
    flags: jax.Array,
    differences_at: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    record: int,
) -> jax.Array:
    """Writes the record of each unit; one whose escapes do not fit has an empty record.

    Args:
      flags: uint32[..., 2, 128]: bits 2 * register + half of each lane's escapes, those of the
        last 16 registers in the second word.
      differences_at: those of escapes, given their lanes, registers and halves, all
        uint32[..., entries].
      record: RECORD.

    Returns:
      uint32[..., RECORD].
    """
    fits = _bits(flags).sum(axis=(-2, -1)) <= entries_that_fit(record)
    flags = jnp.where(fits[..., None, None], flags, jnp.uint32(0))
    of_lane = _bits(flags).sum(axis=-2, dtype=jnp.uint32)
    by_warp = of_lane.reshape(*of_lane.shape[:-1], WARPS, WARP_LANES)
    of_warp = by_warp.sum(axis=-1, dtype=jnp.uint32)
    first = jnp.cumsum(of_warp, axis=-1) - of_warp

    def bitmap(number: jax.Array) -> jax.Array:
        """uint32[..., 4]: the lanes of each warp that have an escape of this number."""
        return _joined((by_warp > number).astype(jnp.uint32), 1)

    position = _positions(record)
    warp = _warp_of(position, first)

    def find(number: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Finds the lanes of the entries that hold their lanes' escape `number`."""
        rank, lane, number_of = state
        lanes = _for_warp(bitmap(number), warp)
        # The rank of an entry that was found before has wrapped around: it is large.
        found = rank < _bits(lanes)
        lane = jnp.where(found, WARP_LANES * warp + _bit_number(lanes, rank), lane)
        return rank - _bits(lanes), lane, jnp.where(found, number, number_of)

    rank = position - _for_warp(first, warp)
    start = (rank, jnp.zeros_like(rank), jnp.zeros_like(rank))
    _, lane, number = jax.lax.fori_loop(jnp.uint32(0), of_lane.max(), find, start)
    low, high = (
        jnp.take_along_axis(flags[..., word, :], lane, axis=-1, mode="promise_in_bounds")
        for word in range(2)
    )
    in_low = _bits(low)
    second = number >= in_low
    bit = _bit_number(
        jnp.where(second, high, low), number - jnp.where(second, in_low, jnp.uint32(0))
    )
    register, half = (bit >> 1) + jnp.where(second, jnp.uint32(16), jnp.uint32(0)), bit & 1
    more = number + 1 < in_low + _bits(high)
    entry = half | (register << REGISTER_SHIFT) | jnp.where(more, jnp.uint32(MORE), jnp.uint32(0))
    entry |= differences_at(lane, register, half) << DIFFERENCE_SHIFT
    used = position < of_warp.sum(axis=-1, keepdims=True)
    entry = jnp.where(used, entry, jnp.uint32(0))
    words = _joined(entry.reshape(*entry.shape[:-1], -1, 2), 16)
    return jnp.concatenate([bitmap(jnp.uint32(0)), _joined(first, 8)[..., None], words], axis=-1)


def read(records: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reads what `write` wrote.

    Args:
      records: uint32[..., RECORD].

    Returns:
      Where each entry's weight is in its unit's fragments [32, 128, 2], flat, uint32[..., entries]
      with the fragments' size for unused entries, and its difference, uint32[..., entries].
    """
    bitmap, starts, words = jnp.split(records, (WARPS, RECORD_HEADER), axis=-1)
    first = (starts >> (8 * jnp.arange(WARPS, dtype=jnp.uint32))) & 0xFF
    entry = jnp.stack([words & 0xFFFF, words >> 16], axis=-1).reshape(*words.shape[:-1], -1)
    position = _positions(records.shape[-1])
    warp = _warp_of(position, first)
    rank = position - _for_warp(first, warp)

    def find(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Finds the lanes of the entries of one round, and with them the next round's bitmap."""
        bitmap, rank, lane = state
        lanes = _for_warp(bitmap, warp)
        found = rank < _bits(lanes)
        of_warp = _bit_number(lanes, rank)
        again = jnp.where(found & ((entry & MORE) != 0), jnp.uint32(1) << of_warp, jnp.uint32(0))
        by_warp = jnp.where(
            warp[..., None, :] == jnp.arange(WARPS, dtype=jnp.uint32)[:, None],
            again[..., None, :],
            jnp.uint32(0),
        )
        return (
            by_warp.sum(axis=-1, dtype=jnp.uint32),
            rank - _bits(lanes),
            jnp.where(found, WARP_LANES * warp + of_warp, lane),
        )

    nowhere = jnp.full_like(rank, LANES)
    _, _, lane = jax.lax.while_loop(
        lambda state: jnp.any(state[0] != 0), find, (bitmap, rank, nowhere)
    )
    place = ((entry >> REGISTER_SHIFT) & 31) * (2 * LANES) + lane * 2 + (entry & 1)
    place = jnp.where(lane < LANES, place, jnp.uint32(REGISTERS * LANES * 2))
    return place, entry >> DIFFERENCE_SHIFT
