"""The `rans` codec: its format from the description alone, its sizes, and 10,000 damaged tiles."""

import chex
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from codecjax.codecs import cacheable_tiles, encode, parts, rans
from codecjax.codecs.aligned_bases import aligned_bases
from codecjax.operations import decode
from codecjax.tiles import TiledMatrix
from tests.codecs.damage import check_damage
from tests.codecs.test_window import (
    escapes_of,
    from_bits,
    gaussian,
    mantissa_of,
    to_bits,
    words_of,
)

BITS = (10, 11, 12)


def symbols_of(arrays: dict[str, np.ndarray], slot: int) -> np.ndarray:
    """uint8[units, 32, 128] of one compressed tile, decoded lane by lane."""
    table, stream = arrays["table"][0].tolist(), arrays["stream"].tolist()
    bits, units = len(table).bit_length() - 1, arrays["words"][slot].size // (16 * 128)
    groups = arrays["states"].shape[1]
    symbols = np.zeros((groups, 32 * units // groups, 128), np.uint8)
    for group, warp in np.ndindex(groups, 4):
        position = int(arrays["starts"][slot, group, warp])
        states = arrays["states"][slot, group, 32 * warp :][:32].tolist()
        for step, lane in np.ndindex(symbols.shape[1], 32):
            entry = table[states[lane] % len(table)]
            state = (entry >> 8 & 0xFFF) * (states[lane] >> bits) + (entry >> 20)
            if state < 2**16:
                state = state << 16 | stream[position]
                position += 1
            states[lane] = state
            symbols[group, step, 32 * warp + lane] = entry & 0xFF
        assert states == [2**16] * 32
    return symbols.reshape(units, 32, 128)


def oracle(t: TiledMatrix) -> np.ndarray:
    """Decodes from the format's description alone, one weight at a time, in numpy."""
    arrays = {name: np.asarray(array) for name, array in t.arrays.items()}
    rows, columns = t.tile
    w = np.zeros((t.grid[0] * rows, t.grid[1] * columns), np.uint16)
    for tile in range(t.tiles):
        top, left = (tile // t.grid[1]) * rows, (tile % t.grid[1]) * columns
        symbols = symbols_of(arrays, tile)
        for unit, (down, across) in enumerate(np.ndindex(rows // 64, columns // 128)):
            words = words_of(arrays["words"][tile, down, across])
            for register, lane, half in np.ndindex(32, 128, 2):
                row = 64 * down + 16 * (lane // 32) + 8 * (register % 2) + (lane % 32) // 4
                column = 128 * across + 8 * (register // 2) + 2 * (lane % 4) + half
                mantissa = mantissa_of(int(words[register // 2, lane]), register, half)
                digit = int(symbols[unit, register, lane]) >> (4 * half) & 0xF
                exponent = int(arrays["base"][tile // t.grid[1], row]) + digit
                w[top + row, left + column] = mantissa | exponent << 7
            for lane, register, half, other in escapes_of(arrays["escapes"][tile, down, across]):
                row = top + 64 * down + 16 * (lane // 32) + 8 * (register % 2) + (lane % 32) // 4
                column = left + 128 * across + 8 * (register // 2) + 2 * (lane % 4) + half
                w[row, column] ^= other << 7
    return w[: t.shape[0], : t.shape[1]]


@pytest.mark.parametrize(("tile", "units"), [((128, 256), 4), ((64, 384), 1), ((128, 128), 2)])
def test_format_is_as_described(tile: tuple[int, int], units: int) -> None:
    w = gaussian(250, 380).copy()
    w[3, 7], w[3, 8], w[90, 200], w[91, 201] = 1e-30, 1e30, 0, np.inf
    t = encode(w, codec="rans", tile=tile, probability_bits=10)
    assert not t.is_dense
    assert t.arrays["states"].shape[1] * units * 64 * 128 == tile[0] * tile[1]
    chex.assert_trees_all_equal(oracle(t), to_bits(w))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tile", [(64, 128), (256, 512)])
def test_tiles_and_tables_of_any_size_survive(tile: tuple[int, int], bits: int) -> None:
    w = gaussian(500, 1000)
    t = encode(w, codec="rans", tile=tile, probability_bits=bits)
    assert not t.is_dense
    assert t.arrays["table"].shape == (1, 2**bits)
    chex.assert_trees_all_equal(to_bits(decode(t)), to_bits(w))


@pytest.mark.parametrize(("bits", "most"), [(10, 10.85), (11, 10.80), (12, 10.77)])
def test_gaussian_weights_take_few_bits(bits: int, most: float) -> None:
    t = encode(gaussian(2048, 4096), codec="rans", probability_bits=bits)
    assert 10.6 < t.bits_per_weight < most
    assert t.nbytes == sum(np.asarray(array).nbytes for array in t.arrays.values())


def test_verbatim_tiles_need_no_decode() -> None:
    wild = from_bits(np.random.default_rng(3).integers(0, 2**16, (256, 256)))
    w = np.block([[wild, gaussian(256, 256)], [gaussian(256, 512, 1)]])
    t = encode(w, codec="rans")
    assert t.arrays["verbatim"].shape[0] == 1
    np.testing.assert_array_equal(np.flatnonzero(~cacheable_tiles(t)), [0])
    chex.assert_trees_all_equal(to_bits(decode(t)), to_bits(w))


def test_parts_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian(300, 250)
    whole = encode(w, codec="rans", tile=(64, 128))
    # Two of five tile rows at a time: the last part begins within the one before it.
    monkeypatch.setattr(parts, "WEIGHTS_AT_ONCE", 2 * 64 * 256)
    rans._pack.clear_cache()
    chex.assert_trees_all_equal(encode(w, codec="rans", tile=(64, 128)).arrays, whole.arrays)
    rans._pack.clear_cache()


@pytest.mark.parametrize("scales", [[0.01], [0.01, 0.08], [0.01, 0.011, 0.013, 0.015, 0.018]])
def test_digits_of_all_rows_have_one_distribution(scales: list[float]) -> None:
    scale = np.resize(scales, (256, 1))
    w = (scale * np.random.default_rng(0).normal(size=(256, 1024))).astype(ml_dtypes.bfloat16)
    exponents = to_bits(w).astype(int) >> 7 & 0xFF
    base = np.asarray(aligned_bases(jnp.asarray(to_bits(w)), 16))
    digits = exponents - base[:, None]
    assert np.mean((digits >= 0) & (digits < 16)) > 0.9997

    def entropy(values: np.ndarray) -> float:
        share = np.unique(values, return_counts=True)[1] / values.size
        return float(-(share * np.log2(share)).sum())

    # Rows whose scales differ by a power of two are the same once they are aligned.
    rows = np.mean([entropy(row) for row in exponents])
    spread = np.unique(np.log2(scale) % 1).size > 1
    assert entropy(digits) < rows + (0.08 if spread and len(scales) > 2 else 0.02)


def test_rows_of_strange_exponents_have_bases() -> None:
    bits = np.zeros((4, 256), np.uint16)
    bits[1], bits[2] = 0x7F80, 0xFFFF
    bits[3] = np.arange(256) << 7
    base = np.asarray(aligned_bases(jnp.asarray(bits), 16))
    assert base.min() >= 0
    assert base.max() <= 240


def test_damage_never_reads_outside_and_checksums_find_all_that_shows() -> None:
    w = gaussian(64, 384).copy()
    w[:3, :100] = 2.0**-100  # makes the first tile verbatim
    w[5, 200], w[9, 300] = 2.0**30, 2.0**-60
    t = encode(w, codec="rans", tile=(64, 128), probability_bits=10)
    shown = check_damage(t, rans, 10_000)
    assert shown.keys() == {
        *("words", "escapes", "base", "states", "starts", "stream", "table", "slot", "verbatim")
    }
    # No array is mere decoration.
    assert min(shown.values()) > 100, shown
