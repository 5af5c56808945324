"""The rANS coder: round trips, sizes beside the entropy and another coder, damaged streams."""

import functools

import chex
import constriction
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs import rans_coder
from codecjax.codecs.rans_coder import Streams, decode_table, encode, frequencies, is_intact
from codecjax.errors import UserError

GROUPS, STEPS, BITS = 6, 64, 12
SHAPE = (GROUPS, STEPS, 128)


def geometric(ratio: float) -> np.ndarray:
    weights = ratio ** np.arange(256)
    return weights / weights.sum()


DISTRIBUTIONS = {
    "uniform": np.full(256, 1 / 256),
    "two symbols": np.where(np.isin(np.arange(256), (3, 200)), 0.5, 0.0),
    "two symbols, one of them rare": np.array([0.999, 0.001] + [0.0] * 254),
    "skewed": geometric(0.6),
    "slightly skewed": geometric(0.97),
    "one symbol": np.eye(256)[255],
}
every_distribution = pytest.mark.parametrize("name", DISTRIBUTIONS)


def drawn(name: str, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.choice(256, SHAPE, p=DISTRIBUTIONS[name]).astype(np.uint8)


def table_for(symbols: np.ndarray, bits: int = BITS) -> np.ndarray:
    return frequencies(np.bincount(symbols.reshape(-1), minlength=256), bits)


def decoded(streams: Streams, tables: np.ndarray, table_of: np.ndarray | None = None) -> np.ndarray:
    def group(states: jax.Array, starts: jax.Array, table_of: jax.Array | None) -> jax.Array:
        words = streams.words
        return rans_coder.decode_group(states, starts, words, jnp.asarray(tables), STEPS, table_of)

    of_group = None if table_of is None else jnp.asarray(table_of)
    return np.asarray(jax.jit(jax.vmap(group))(streams.states, streams.starts, of_group))


def cross_entropy(symbols: np.ndarray, table: np.ndarray) -> float:
    """Bits of the symbols where each costs what its frequency says."""
    counts = np.bincount(symbols.reshape(-1), minlength=256)
    occurs = counts > 0
    return float(-(counts[occurs] * np.log2(table[occurs] / table.sum())).sum())


def content(streams: Streams, symbols: np.ndarray, table: np.ndarray) -> float:
    """Bits of the words that are read and of what the states are above the least."""
    states = np.asarray(streams.states).astype(float)
    read = np.flatnonzero(np.asarray(streams.words))
    used = max(int(np.asarray(streams.starts).max()), int(read.max(initial=-1)) + 1)
    return 16 * used + float(np.log2(states / 2**16).sum())


@pytest.mark.parametrize("bits", [10, 11, 12])
@every_distribution
def test_symbols_survive(name: str, bits: int) -> None:
    symbols = drawn(name)
    table = table_for(symbols, bits)
    streams = encode(symbols, table[None], bits)
    tables = decode_table(table, bits)[None]
    chex.assert_trees_all_equal(decoded(streams, tables), symbols)
    assert is_intact(streams, tables, STEPS)
    assert streams.states.min() >= 2**16


@every_distribution
def test_size_is_the_cross_entropy(name: str) -> None:
    symbols = drawn(name)
    table = table_for(symbols)
    size = content(encode(symbols, table[None], BITS), symbols, table)
    # A word is counted whole where zeros end it.
    assert abs(size - cross_entropy(symbols, table)) <= 0.005 * cross_entropy(symbols, table) + 64


@every_distribution
def test_size_is_that_of_another_coder(name: str) -> None:
    symbols = drawn(name)
    table = table_for(symbols)
    model = constriction.stream.model.Categorical(table[table > 0] / table.sum(), perfect=False)
    number = np.cumsum(table > 0) - 1
    other = constriction.stream.stack.AnsCoder()
    other.encode_reverse(number[symbols.reshape(-1)].astype(np.int32), model)
    size = content(encode(symbols, table[None], BITS), symbols, table)
    assert abs(size - other.num_valid_bits()) <= 0.005 * other.num_valid_bits() + 64


def test_words_are_few_and_rounded_up_to_few_lengths() -> None:
    lengths = [rans_coder._length(words) for words in range(0, 1 << 20, 13)]
    assert all(
        words <= length <= words + max(64, words / 1000)
        for words, length in zip(range(0, 1 << 20, 13), lengths, strict=True)
    )
    assert min(lengths) == 64
    assert all(length % 64 == 0 for length in lengths)


def test_format_is_as_described() -> None:
    """Decodes by the description alone, lane by lane."""
    symbols = drawn("skewed")
    table = table_for(symbols)
    streams = encode(symbols, table[None], BITS)
    states, starts, words = (np.asarray(each).tolist() for each in streams)
    symbol_at = [symbol for symbol in range(256) for _ in range(table[symbol])]
    first = np.cumsum(table) - table
    position = 0
    for group in range(GROUPS):
        for warp in range(4):
            assert starts[group][warp] == position
            for step in range(STEPS):
                for lane in range(32 * warp, 32 * warp + 32):
                    slot = states[group][lane] % 2**BITS
                    symbol = symbol_at[slot]
                    assert symbol == symbols[group, step, lane]
                    state = int(table[symbol]) * (states[group][lane] >> BITS)
                    state += slot - int(first[symbol])
                    if state < 2**16:
                        state = state << 16 | words[position]
                        position += 1
                    states[group][lane] = state
    assert states == [[2**16] * 128] * GROUPS
    assert not any(words[position:])


@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_parts_make_up_the_whole(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = drawn("skewed")
    table = table_for(symbols)[None]
    whole = encode(symbols, table, BITS)
    monkeypatch.setattr(rans_coder, "_SYMBOLS_AT_ONCE", at_once * STEPS * 128)
    for program in (rans_coder._emit, rans_coder._gathered):
        program.clear_cache()
    chex.assert_trees_all_equal(encode(symbols, table, BITS), whole)
    for program in (rans_coder._emit, rans_coder._gathered):
        program.clear_cache()


@pytest.mark.parametrize("shape", [SHAPE, (GROUPS, 1, 128), (GROUPS, STEPS, 1), (1, 1, 128)])
def test_every_symbol_has_the_table_that_is_named(shape: tuple[int, ...]) -> None:
    table_of = np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)
    choices = np.stack([drawn(name) for name in ("skewed", "slightly skewed", "uniform")])
    full = np.broadcast_to(table_of, SHAPE)
    symbols = np.take_along_axis(choices, full[None], axis=0)[0]
    rows = np.stack(
        [
            frequencies(np.bincount(symbols[full == table], minlength=256), BITS)
            for table in range(3)
        ]
    )
    streams = encode(symbols, rows, BITS, table_of)
    tables = np.stack([decode_table(row, BITS) for row in rows])
    of_groups = np.broadcast_to(table_of, (GROUPS, *shape[1:]))
    chex.assert_trees_all_equal(decoded(streams, tables, of_groups), symbols)
    assert is_intact(streams, tables, STEPS, jnp.asarray(table_of))
    bits = sum(cross_entropy(symbols[full == table], rows[table]) for table in range(3))
    assert abs(content(streams, symbols, rows) - bits) <= 0.005 * bits


@pytest.mark.parametrize("bits", [10, 11, 12])
def test_frequencies_are_the_best_there_are(bits: int) -> None:
    random = np.random.default_rng(bits)
    for symbols in (1, 2, 5, 256):
        counts = random.geometric(1e-3, symbols) * (random.random(symbols) < 0.8)
        table = frequencies(counts, bits)
        counts = np.pad(counts, (0, 256 - symbols))
        assert table.sum() == 2**bits
        assert table.max() < 2**bits
        assert table[counts > 0].min(initial=1) >= 1
        # Nothing is gained by moving a slot from any symbol to any other.
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(table > 0, counts * np.log2(1 + 1 / table), 0)
            loss = np.where(table > 1, -counts * np.log2(1 - 1 / np.maximum(table, 2)), np.inf)
        alone = np.count_nonzero(counts) < 2
        assert alone or gain.max() <= loss.min() * (1 + 1e-9)


@pytest.mark.parametrize("symbols", [1, 2, 3, 7, 256])
def test_equal_counts_have_equal_frequencies(symbols: int) -> None:
    """Rounding must not have slots move to and fro for ever."""
    table = frequencies(np.full(symbols, 3), 10)
    assert table.sum() == 1024
    assert symbols == 1 or np.ptp(table[:symbols]) <= 1


def test_a_symbol_without_frequency_is_refused() -> None:
    symbols = drawn("uniform")
    table = table_for(drawn("two symbols"))
    with pytest.raises(UserError, match="frequency 0 in its table"):
        encode(symbols, table[None], BITS)


def test_damage_never_reads_outside_and_is_noticed() -> None:
    symbols = drawn("skewed")
    tables = jnp.asarray(decode_table(table_for(symbols), BITS)[None])
    streams = encode(symbols, table_for(symbols)[None], BITS)
    used = int(np.flatnonzero(np.asarray(streams.words)).max()) + 1
    mutations = 500
    random = np.random.default_rng(2)
    bit = jnp.asarray(random.integers(0, 32, mutations), jnp.uint32)
    at = jnp.asarray(random.integers(0, 2**31, mutations))

    def flipped(array: jax.Array, at: jax.Array, bit: jax.Array) -> jax.Array:
        flat = array.reshape(-1)
        one = jnp.array(1, array.dtype) << (bit % (8 * array.dtype.itemsize)).astype(array.dtype)
        at %= used if array.dtype == jnp.uint16 else flat.size
        return flat.at[at].set(flat[at] ^ one).reshape(array.shape)

    @functools.partial(jax.jit, static_argnames="name")
    def noticed(name: str) -> jax.Array:
        def one(at: jax.Array, bit: jax.Array) -> jax.Array:
            damaged = streams._replace(**{name: flipped(getattr(streams, name), at, bit)})
            return ~is_intact(damaged, tables, STEPS)

        return jax.lax.map(lambda each: one(*each), (at, bit), batch_size=50)

    assert noticed("starts").all()
    for name in ("states", "words"):
        assert noticed(name).mean() > 0.99


def test_nonsense_is_decoded_to_something() -> None:
    random = np.random.default_rng(4)
    streams = Streams(
        jnp.asarray(random.integers(0, 2**32, (GROUPS, 128), np.uint32)),
        jnp.asarray(random.integers(0, 2**32, (GROUPS, 4), np.uint32)),
        jnp.asarray(random.integers(0, 2**16, 64, np.uint16)),
    )
    tables = jnp.asarray(random.integers(0, 2**32, (1, 2**BITS), np.uint32))
    assert decoded(streams, tables).shape == SHAPE
    assert not is_intact(streams, tables, STEPS)
