"""The codecs against independent oracles: every bit pattern, every kind of matrix, few bits."""

import dataclasses
import math
import warnings
from collections.abc import Callable

import chex
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from codecjax.codecs import cacheable_tiles, encode, parts, window
from codecjax.codecs.cast import CastWarning
from codecjax.codecs.window_units import choose_record
from codecjax.errors import UserError
from codecjax.operations import decode
from codecjax.tiles import TiledMatrix
from kernels_pallas.arg_specs import gaussian_weight

WIDTHS = (8, 11, 16)
COMPRESSING = [*[("window", {"width": width}) for width in WIDTHS], ("rans", {})]
CODECS = [("bf16", {}), *COMPRESSING]
every_codec = pytest.mark.parametrize(
    ("codec", "options"), CODECS, ids=lambda value: value if isinstance(value, str) else None
)


def from_bits(bits: np.ndarray) -> np.ndarray:
    return np.asarray(bits, np.uint16).view(ml_dtypes.bfloat16)


def to_bits(w: object) -> np.ndarray:
    return np.asarray(w).view(np.uint16)


def gaussian(out: int, k: int, seed: int = 0) -> np.ndarray:
    return np.asarray(gaussian_weight(out, k, seed))


def uniform_exponents(out: int, k: int) -> np.ndarray:
    random = np.random.default_rng(3)
    return from_bits(random.integers(0, 2**16, (out, k)))


# Most have one shape: each further one costs a compilation.
MATRICES: dict[str, Callable[[], np.ndarray]] = {
    "gaussian": lambda: gaussian(256, 512),
    "all zeros": lambda: np.zeros((256, 512), ml_dtypes.bfloat16),
    "negative zeros": lambda: np.full((256, 512), -0.0, ml_dtypes.bfloat16),
    "one row": lambda: gaussian(1, 512),
    "one column": lambda: gaussian(512, 1),
    "one weight": lambda: gaussian(1, 1),
    "constant rows": lambda: np.repeat(gaussian(256, 1), 512, axis=1),
    "all NaN": lambda: from_bits(np.full((256, 512), 0x7FC1)),
    "infinities": lambda: from_bits(np.full((256, 512), 0xFF80)),
    "every exponent equally likely": lambda: uniform_exponents(256, 512),
    "mostly zero": lambda: np.where(
        np.random.default_rng(1).random((256, 512)) < 0.9, 0, gaussian(256, 512)
    ).astype(ml_dtypes.bfloat16),
    "subnormal": lambda: from_bits(np.random.default_rng(2).integers(0, 128, (256, 512))),
    "no multiple of a tile": lambda: gaussian(500, 500),
    "heavy tails": lambda: (0.02 * np.random.default_rng(4).standard_t(1.5, (256, 512))).astype(
        ml_dtypes.bfloat16
    ),
    "one wild tile": lambda: np.block(
        [[uniform_exponents(256, 256), gaussian(256, 256)], [gaussian(256, 512, 1)]]
    ),
}


@every_codec
@pytest.mark.parametrize("name", MATRICES)
def test_every_matrix_survives(name: str, codec: str, options: dict[str, int]) -> None:
    w = MATRICES[name]()
    t = encode(w, codec=codec, **options)
    chex.assert_trees_all_equal(to_bits(decode(t)), to_bits(w))
    assert t.shape == w.shape


@every_codec
def test_all_65536_bit_patterns_survive(codec: str, options: dict[str, int]) -> None:
    patterns = np.arange(2**16).reshape(256, 256)
    # Among ordinary weights, one pattern of a kind per lane, so that they are escapes ...
    spread = to_bits(gaussian(4096, 1024)).copy()
    spread[::16, ::4] = patterns
    t = encode(from_bits(spread), codec=codec, **options)
    chex.assert_trees_all_equal(to_bits(decode(t)), spread)
    # ... and by themselves.
    t = encode(from_bits(patterns), codec=codec, **options)
    chex.assert_trees_all_equal(to_bits(decode(t)), patterns.astype(np.uint16))


@pytest.mark.parametrize(("codec", "options"), COMPRESSING)
@pytest.mark.parametrize("name", MATRICES)
def test_expansion_is_bounded_to_one_percent(
    name: str, codec: str, options: dict[str, int]
) -> None:
    w = MATRICES[name]()
    assert encode(w, codec=codec, **options).nbytes <= 1.01 * 2 * w.size


@pytest.mark.parametrize(("width", "most"), [(8, 12.0), (11, 11.7), (16, 12.1)])
def test_gaussian_weights_take_few_bits(width: int, most: float) -> None:
    assert 11.0 < encode(gaussian(2048, 2048), codec="window", width=width).bits_per_weight < most


def test_sizes_count_every_array() -> None:
    t = encode(gaussian(512, 1024), codec="window")
    assert t.nbytes == sum(np.asarray(array).nbytes for array in t.arrays.values())
    assert t.bits_per_weight == 8 * t.nbytes / (512 * 1024)
    assert t.codec == "window"


def escapes_of(record: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Lane, register, half and difference of each escape, in the order of a record's entries."""
    words = [int(word) for word in record]
    entries = [half for word in words[5:] for half in (word & 0xFFFF, word >> 16)]
    escapes = []
    for warp in range(4):
        entry = words[4] >> (8 * warp) & 0xFF
        lanes = [32 * warp + lane for lane in range(32) if words[warp] >> lane & 1]
        while lanes:
            again = []
            for lane in lanes:
                value = entries[entry]
                escapes.append((lane, value >> 1 & 31, value & 1, value >> 8))
                again += [lane] if value >> 6 & 1 else []
                entry += 1
            lanes = again
    return escapes


def mantissa_of(word: int, register: int, half: int) -> int:
    """Sign and mantissa, where a bf16 has them, of one weight of a word with two registers'."""
    bits = (word >> 16 * half) & 0xFFFF
    if register % 2:
        bits = bits >> 8 | (bits & 0xFF) << 8
    return bits & 0x807F


def words_of(stored: np.ndarray) -> np.ndarray:
    """Words [n, 128], by lane, of a unit as it is stored."""
    flat, whole = stored.reshape(-1), len(stored) // 4 * 4
    words = np.zeros_like(stored)
    for word, lane in np.ndindex(stored.shape):
        in_four = 512 * (word // 4) + 4 * lane + word % 4
        words[word, lane] = flat[in_four if word < whole else 128 * word + lane]
    return words


def oracle(t: TiledMatrix) -> np.ndarray:
    """Decodes width 11 from the format's description alone, one weight at a time, in numpy."""
    arrays = {name: np.asarray(array) for name, array in t.arrays.items()}
    rows, columns = t.tile
    w = np.zeros((t.grid[0] * rows, t.grid[1] * columns), np.uint16)
    for tile in range(t.tiles):
        top, left = (tile // t.grid[1]) * rows, (tile % t.grid[1]) * columns
        slot = arrays["slot"][tile] if "slot" in arrays else tile
        if slot < 0:
            block = arrays["verbatim"][-(slot + 1)]
            w[top : top + rows, left : left + columns] = block.view(np.uint16)
            continue
        for down, across in np.ndindex(rows // 64, columns // 128):
            words = words_of(arrays["words"][slot, down, across])
            for register, lane, half in np.ndindex(32, 128, 2):
                row = 64 * down + 16 * (lane // 32) + 8 * (register % 2) + (lane % 32) // 4
                column = 128 * across + 8 * (register // 2) + 2 * (lane % 4) + half
                mantissa = mantissa_of(int(words[register // 2, lane]), register, half)
                code = [(int(word) >> (16 * half)) & 0xFFFF for word in words[16:, lane]]
                pair = register // 2
                if pair < 14:
                    fraction = (code[pair // 2] >> (9 * (pair % 2))) & 127
                else:
                    first, top_bit = ((0, 7), (4, 8))[pair - 14]
                    fraction = sum(((code[first + i] >> 7) & 3) << (2 * i) for i in range(3))
                    fraction |= ((code[3] >> top_bit) & 1) << 6
                number = fraction * 121 // 128
                digit = number // 11 if register % 2 == 0 else number % 11
                exponent = int(arrays["base"][tile // t.grid[1], row]) + digit
                w[top + row, left + column] = mantissa | (exponent & 0xFF) << 7
            for lane, register, half, other in escapes_of(arrays["escapes"][slot, down, across]):
                row = top + 64 * down + 16 * (lane // 32) + 8 * (register % 2) + (lane % 32) // 4
                column = left + 128 * across + 8 * (register // 2) + 2 * (lane % 4) + half
                w[row, column] ^= other << 7
    return w[: t.shape[0], : t.shape[1]]


def test_format_is_as_described() -> None:
    w = gaussian(128, 256).copy()
    w[3, 7], w[3, 8], w[90, 200] = 1e-30, 1e30, 0
    t = encode(w, codec="window", tile=(128, 256))
    assert not t.is_dense
    chex.assert_trees_all_equal(oracle(t), to_bits(w))


def test_records_are_as_described() -> None:
    w = np.ones((64, 128), ml_dtypes.bfloat16)
    # Lane 0 has three escapes, lane 4 (row 1) one, lane 33 (row 16, columns 2 and 3) two.
    w[0, 9], w[8, 0], w[0, 1], w[1, 0], w[16, 3], w[16, 2] = (2.0**n for n in range(20, 26))
    arrays = encode(w, codec="window", tile=(64, 128)).arrays
    record, base = np.asarray(arrays["escapes"])[0, 0, 0], np.asarray(arrays["base"])[0]
    assert record.shape == (24,)
    assert escapes_of(record) == [
        (0, 0, 1, (127 + 22) ^ base[0]),
        (4, 0, 0, (127 + 23) ^ base[1]),
        (0, 1, 0, (127 + 21) ^ base[8]),
        (0, 2, 1, (127 + 20) ^ base[0]),
        (33, 0, 0, (127 + 25) ^ base[16]),
        (33, 0, 1, (127 + 24) ^ base[16]),
    ]
    assert record[:5].tolist() == [0b10001, 0b10, 0, 0, 0x06060400]
    assert not record[8:].any()


@pytest.mark.parametrize(("escapes", "record"), [(64, 48), (255, 144), (256, None)])
def test_lists_of_any_length_survive(escapes: int, record: int | None) -> None:
    w = np.ones((64, 128), ml_dtypes.bfloat16)
    # All 64 weights of lane 5 come first: its rows 1 and 9, columns 2 and 3 of each 8.
    lane = [(row, 8 * kt + column) for kt in range(16) for row in (1, 9) for column in (2, 3)]
    others = [(row, column) for row in range(32, 64) for column in range(0, 128, 16)]
    for number, place in enumerate((lane + others)[:escapes]):
        w[place] = 2.0 ** (number % 100 + 20)
    t = encode(w, codec="window", tile=(64, 128))
    chex.assert_trees_all_equal(to_bits(decode(t)), to_bits(w))
    assert t.is_dense == (record is None)
    if record is not None:
        mine = np.asarray(t.arrays["escapes"])[0, 0, 0]
        assert mine.shape == (record,)
        assert [place[0] for place in escapes_of(mine)].count(5) == 64
        assert len(escapes_of(mine)) == escapes


def test_records_are_long_enough_for_all_tiles_where_that_costs_little() -> None:
    tile, most = (256, 256), np.full(100, 10)

    def chosen() -> int:
        return choose_record(most, tile, 11, 4 * 23 * 128)[0]

    assert chosen() == 24
    most[7] = 80
    assert chosen() == 48
    most[7] = 100
    assert chosen() == 24
    most[7] = 8192
    assert chosen() == 24


def test_parts_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian(300, 250)
    whole = encode(w, codec="window", tile=(64, 128))
    # Two of five tile rows at a time: the last part begins within the one before it.
    monkeypatch.setattr(parts, "WEIGHTS_AT_ONCE", 2 * 64 * 256)
    window._pack.clear_cache()
    chex.assert_trees_all_equal(encode(w, codec="window", tile=(64, 128)).arrays, whole.arrays)


def test_verbatim_tiles_need_no_decode() -> None:
    t = encode(MATRICES["one wild tile"](), codec="window")
    assert t.arrays["verbatim"].shape[0] == 1
    np.testing.assert_array_equal(np.flatnonzero(~cacheable_tiles(t)), [0])
    assert not cacheable_tiles(encode(gaussian(256, 256), codec="bf16")).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_floats_are_cast_with_a_report(dtype: type) -> None:
    w = gaussian(256, 256).astype(np.float32).astype(dtype)
    w[0, 0], w[0, 1] = dtype(1.001), np.nan
    with pytest.warns(CastWarning) as caught:
        t = encode(w)
    report = caught[0].message.report  # type: ignore[union-attr]
    assert (report.weights, report.dtype) == (w.size, np.dtype(dtype).name)
    assert report.changed >= 1
    assert math.isclose(report.max_error, abs(float(w[0, 0]) - 1.0), rel_tol=1e-3)
    expected = w.astype(np.float32).astype(ml_dtypes.bfloat16)
    assert np.array_equal(np.asarray(decode(t)), expected, equal_nan=True)


def test_float32_that_overflows_is_counted() -> None:
    w = np.ones((256, 256), np.float32)
    w[5, 5] = 3.4e38
    with pytest.warns(CastWarning, match="1 overflowed to infinity"):
        encode(w)


def test_bf16_is_not_cast() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(gaussian(64, 128))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"codec": "zip"}, "unknown codec 'zip': choose one of bf16, ecsq, int8_rans, rans"),
        ({"width": 9}, "no width 9: choose one of 8, 11, 16"),
        ({"level": 1}, "no option 'level'"),
        ({"tile": (100, 128)}, "tile 100x128 is not a positive multiple of 64x128"),
        ({"w": jnp.zeros(5, jnp.bfloat16)}, r"shape \(5,\) cannot be encoded"),
        ({"w": jnp.zeros((0, 5), jnp.bfloat16)}, r"shape \(0, 5\) cannot be encoded"),
        ({"w": jnp.zeros((4, 4), jnp.int32)}, "int32"),
    ],
)
def test_bad_input_is_named(arguments: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        encode(**{"w": jnp.ones((64, 128), jnp.bfloat16), **arguments})


def test_tiled_matrices_are_pytrees_whose_format_is_static() -> None:
    t = encode(gaussian(256, 256))
    assert dataclasses.replace(t, version=t.version + 1) != t
    with pytest.raises(dataclasses.FrozenInstanceError):
        t.version = 3  # type: ignore[misc]
