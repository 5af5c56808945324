"""Interleaved rANS: the entropy coder of every codec whose name has "rans" in it, and of `ecsq`.

Symbols are uint8[GROUPS, STEPS, 128]. Each of a group's 128 lanes has a state of its own, and
the 32 lanes of a warp read one stream of 16-bit words. What is coded of a group:

    states  uint32[GROUPS, 128]   in [2**16, 2**32), from which each lane's decoding begins
    starts  uint32[GROUPS, 4]     index in `words` of the first word of each warp
    words   uint16[LENGTH]        those of warp 0 of group 0, of warp 1 of group 0, and so on,
                                  without gaps; after the last one zeros, as a bucket needs

A *table* gives each symbol a frequency; they sum to 2**bits. `decode_table` has one entry for
each slot, symbol | frequency << 8 | offset << 20, offset being the slot's number among those of
its symbol. All lanes decode step by step, 0 to STEPS - 1:

    slot = state & (2**bits - 1);  entry = table[slot];  symbol = entry & 0xff
    state = frequency * (state >> bits) + offset
    a lane needs a word where its state is now below 2**16: state = state << 16 | word

Lanes of a warp that need one take the next words of its stream, in order of lanes. Encoding
does the same backwards from states 2**16, so that is what decoding ends with. This is the
range variant of J. Duda, "Asymmetric numeral systems", arXiv:1311.2540, interleaved as by
F. Giesen, "Interleaved entropy coders", arXiv:1402.3392.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs.parts import in_parts
from codecjax.errors import UserError

LANES, WARPS, WARP_LANES = 128, 4, 32
ALPHABET = 256
BITS = (10, 11, 12)
WORD_BITS = 16
LOWEST = 1 << WORD_BITS

# Symbols that are encoded at a time: few temporaries, and enough to keep a GPU busy.
_SYMBOLS_AT_ONCE = 1 << 23
# Kernels are compiled for one LENGTH: it is a multiple of this, and of a 1024th of itself.
_SHORTEST_STEP = 64


class Streams(NamedTuple):
    """Coded symbols: see the module.

    Attributes:
      states: uint32[GROUPS, 128].
      starts: uint32[GROUPS, 4].
      words: uint16[LENGTH].
    """

    states: jax.Array
    starts: jax.Array
    words: jax.Array


def frequencies(counts: np.ndarray, bits: int) -> np.ndarray:
    """The frequencies that code symbols of these counts in the fewest bits.

    Args:
      counts: int[S], how often each of S <= 256 symbols occurs.
      bits: 10, 11 or 12.

    Returns:
      int32[256]: sums to 2**bits; at least 1 for every symbol that occurs, and less than
      2**bits for each, so a symbol that occurs alone has a companion that does not.
    """
    total = 1 << bits
    weights = np.zeros(ALPHABET)
    weights[: len(counts)] = counts
    absent = np.flatnonzero(weights == 0)
    # As good as absent still: far too rare to be given more than the 1 that it must have.
    weights[absent[: max(0, 2 - ALPHABET + absent.size)]] = np.finfo(float).tiny
    occurs = weights > 0
    chosen = np.where(occurs, np.maximum(np.floor(weights / weights.sum() * total), 1), 0)

    def change(by: int) -> np.ndarray:
        """Bits saved by adding `by` to each frequency; -inf where that may not be."""
        after = np.maximum(chosen + by, 1)
        saved = weights * np.log2(after / np.maximum(chosen, 1))
        return np.where(occurs & (chosen + by >= 1), saved, -np.inf)

    # The bits are a convex function of each frequency: the best single steps lead to the optimum.
    while chosen.sum() < total:
        chosen[np.argmax(change(1))] += 1
    while chosen.sum() > total:
        chosen[np.argmax(change(-1))] -= 1
    while True:
        gains, losses = change(1), change(-1)
        gainer, loser = np.argmax(gains), np.argmax(losses)
        # Less than this may be rounding, and would be gained again and again.
        if gains[gainer] + losses[loser] <= 1e-12 * weights.sum():
            return chosen.astype(np.int32)
        chosen[gainer] += 1
        chosen[loser] -= 1


def decode_table(frequencies: np.ndarray, bits: int) -> np.ndarray:
    """uint32[2**bits]: the table, see the module, of frequencies int32[256]."""
    symbol = np.repeat(np.arange(ALPHABET, dtype=np.uint32), frequencies)
    first = np.cumsum(frequencies) - frequencies
    offset = np.arange(1 << bits) - first[symbol]
    frequency = frequencies[symbol].astype(np.uint32)
    return symbol | frequency << 8 | offset.astype(np.uint32) << 20


def _length(words: int) -> int:
    """LENGTH for a number of words: at most a 1024th, or 64 words, more."""
    step = max(_SHORTEST_STEP, 1 << max(words.bit_length() - 11, 0))
    return -(-max(words, 1) // step) * step


def _groups_at_once(groups: int, steps: int) -> int:
    return min(groups, max(1, _SYMBOLS_AT_ONCE // (steps * LANES)))


@functools.partial(jax.jit, static_argnames=("bits",))
def _emit(
    symbols: jax.Array, frequencies: jax.Array, table_of: jax.Array, bits: int
) -> tuple[jax.Array, ...]:
    """Encodes, with each word where its step and lane are.

    Returns:
      states: uint32[GROUPS, 128].
      emitted: uint16[GROUPS, STEPS, 128], words, and anything where a lane needs none.
      needs: uint32[GROUPS, STEPS, 4], bit i: lane i of the warp needs a word.
      possible: bool[GROUPS], every symbol has a frequency.
    """
    groups, steps, _ = symbols.shape
    first = jnp.cumsum(frequencies, axis=-1, dtype=jnp.int32) - frequencies
    # Both fit 16 bits, so one look-up has them.
    models = (frequencies | first << 16).astype(jnp.uint32).reshape(-1)
    numbers = jnp.broadcast_to(table_of.astype(jnp.uint8), symbols.shape)
    at_once = _groups_at_once(groups, steps)

    def step(
        carry: tuple[jax.Array, jax.Array], coded: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        state, possible = carry
        symbol, number = (each.astype(jnp.uint32) for each in coded)
        model = models.at[number * ALPHABET + symbol].get(mode="clip")
        frequency, first = model & 0xFFFF, model >> 16
        needs = state >= frequency << (32 - bits)
        emitted = state.astype(jnp.uint16)
        state = jnp.where(needs, state >> WORD_BITS, state)
        quotient = state // frequency
        state = (quotient << bits) + (state - quotient * frequency) + first
        by_warp = needs.reshape(-1, WARPS, WARP_LANES).astype(jnp.uint32)
        mask = (by_warp << jnp.arange(WARP_LANES, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)
        return (state, possible & jnp.all(frequency > 0, axis=-1)), (emitted, mask)

    def part(at: jax.Array | int) -> tuple[jax.Array, ...]:
        mine = (jax.lax.dynamic_slice_in_dim(each, at, at_once) for each in (symbols, numbers))
        coded = tuple(each.swapaxes(0, 1) for each in mine)
        start = (jnp.full((at_once, LANES), LOWEST, jnp.uint32), jnp.ones(at_once, bool))
        (states, possible), (emitted, needs) = jax.lax.scan(step, start, coded, reverse=True)
        return states, emitted.swapaxes(0, 1), needs.swapaxes(0, 1), possible

    return in_parts(part, groups, at_once)


@jax.jit
def _places(needs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Starts uint32[GROUPS, 4], places uint32[GROUPS, STEPS, 4] of first words, words in all."""
    words = jax.lax.population_count(needs)
    of_warp = words.sum(axis=1, dtype=jnp.uint32)
    end = jnp.cumsum(of_warp.reshape(-1), dtype=jnp.uint32)
    starts = end.reshape(of_warp.shape) - of_warp
    return starts, starts[:, None] + jnp.cumsum(words, axis=1, dtype=jnp.uint32) - words, end[-1]


@functools.partial(jax.jit, static_argnames=("length",))
def _gathered(emitted: jax.Array, needs: jax.Array, first: jax.Array, length: int) -> jax.Array:
    """uint16[length]: the words that are needed, in the order in which they are read."""
    groups, steps, _ = emitted.shape
    at_once = _groups_at_once(groups, steps)
    lane = jnp.arange(WARP_LANES, dtype=jnp.uint32)

    def put_part(number: jax.Array, words: jax.Array) -> jax.Array:
        # The last part may begin among the groups of the one before it.
        at = jnp.minimum(number * at_once, groups - at_once)
        part = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=at, slice_size=at_once)
        mask = part(needs)[..., None]
        place = part(first)[..., None] + jax.lax.population_count(mask & ((1 << lane) - 1))
        # Each place beyond the end comes once too: a GPU then needs no atomic writes.
        outside = jnp.uint32(length) + jnp.arange(place.size, dtype=jnp.uint32)
        place = jnp.where((mask >> lane) & 1 == 1, place, outside.reshape(place.shape))
        mine = part(emitted).reshape(place.shape)
        return words.at[place].set(mine, mode="drop", unique_indices=True)

    start = jnp.zeros(length, jnp.uint16)
    return jax.lax.fori_loop(0, -(-groups // at_once), put_part, start)


def encode(
    symbols: jax.Array,
    frequencies: jax.Array | np.ndarray,
    bits: int,
    table_of: jax.Array | None = None,
) -> Streams:
    """Codes symbols, all lanes of all groups at once.

    Args:
      symbols: uint8[GROUPS, STEPS, 128].
      frequencies: int32[TABLES, 256], each row as `frequencies` gives it.
      bits: 10, 11 or 12.
      table_of: uint8, broadcastable to `symbols`: the table of each; None: all of table 0.

    Raises:
      UserError: a symbol occurs to which its table gives no frequency.
    """
    table_of = jnp.zeros((1, 1, 1), jnp.uint8) if table_of is None else table_of
    models = jnp.asarray(frequencies, jnp.int32)
    states, emitted, needs, possible = _emit(symbols, models, table_of, bits)
    starts, first, words = _places(needs)
    if not possible.all():
        raise UserError(
            "a symbol has frequency 0 in its table: count all symbols before `frequencies`"
        )
    return Streams(states, starts, _gathered(emitted, needs, first, _length(int(words))))


def _decode(
    states: jax.Array,
    starts: jax.Array,
    words: jax.Array,
    tables: jax.Array,
    steps: int,
    table_of: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Symbols uint8[steps, 128], and states uint32[128] and positions uint32[4] after them."""
    slots = tables.shape[-1]
    bits, last = slots.bit_length() - 1, words.shape[0] - 1
    flat = jnp.asarray(tables).reshape(-1)
    table_of = jnp.zeros((1, 1), jnp.uint8) if table_of is None else table_of
    rows = jnp.broadcast_to(table_of.astype(jnp.uint32), (steps, LANES)) * slots

    def step(
        carry: tuple[jax.Array, jax.Array], row: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        state, position = carry
        entry = flat.at[row + (state & (slots - 1))].get(mode="clip")
        state = ((entry >> 8) & 0xFFF) * (state >> bits) + (entry >> 20)
        need = (state < LOWEST).reshape(WARPS, WARP_LANES)
        count = jnp.cumsum(need, axis=-1, dtype=jnp.uint32)
        # Of a damaged stream any position may come: no word beyond the last is read.
        place = jnp.minimum(position[:, None] + count - need, jnp.uint32(last))
        word = words.at[place].get(mode="clip").astype(jnp.uint32).reshape(LANES)
        state = jnp.where(need.reshape(LANES), state << WORD_BITS | word, state)
        return (state, position + count[:, -1]), entry.astype(jnp.uint8)

    (states, ends), symbols = jax.lax.scan(step, (states, starts), rows)
    return symbols, states, ends


def decode_group(
    states: jax.Array,
    starts: jax.Array,
    words: jax.Array,
    tables: jax.Array,
    steps: int,
    table_of: jax.Array | None = None,
) -> jax.Array:
    """Decodes one group: the definition of the format.

    A damaged stream gives other symbols; nothing outside of `words` and `tables` is read.

    Args:
      states: uint32[128].
      starts: uint32[4].
      words: uint16[LENGTH], those of all groups.
      tables: uint32[TABLES, 2**bits], each as `decode_table` gives it.
      steps: STEPS.
      table_of: uint8, broadcastable to [STEPS, 128]; None: all of table 0.

    Returns:
      uint8[STEPS, 128].
    """
    return _decode(states, starts, words, tables, steps, table_of)[0]


@functools.partial(jax.jit, static_argnames=("steps",))
def is_intact(
    streams: Streams, tables: jax.Array, steps: int, table_of: jax.Array | None = None
) -> jax.Array:
    """bool: whether decoding ends as that of what `encode` returns does.

    It then ends with states 2**16, each warp where the next one starts, and zeros are left. The
    chance that damage to a lane goes unnoticed is about 2**-16: a checksum is the safer guard.

    Args:
      streams: of all groups.
      tables: uint32[TABLES, 2**bits].
      steps: STEPS.
      table_of: uint8, broadcastable to [GROUPS, STEPS, 128]; None: all of table 0.
    """
    groups = streams.states.shape[0]
    table_of = jnp.zeros((1, 1, 1), jnp.uint8) if table_of is None else table_of
    table_of = jnp.broadcast_to(table_of, (groups, *table_of.shape[1:]))
    _, states, ends = jax.vmap(_decode, in_axes=(0, 0, None, None, None, 0))(
        streams.states, streams.starts, streams.words, tables, steps, table_of
    )
    starts, ends = streams.starts.reshape(-1), ends.reshape(-1)
    left = jnp.where(jnp.arange(streams.words.shape[0]) >= ends[-1], streams.words, 0)
    return (
        jnp.all(states == LOWEST)
        & jnp.all(ends[:-1] == starts[1:])
        & (starts[0] == 0)
        & jnp.all(left == 0)
    )
