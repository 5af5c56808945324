"""DFloat11's format, read back bit by bit as its definition says."""

import importlib.util
import types
from pathlib import Path

import numpy as np
import pytest

from codecjax.errors import UserError
from experiments import bench_dfloat11, bench_dfloat11_format
from experiments.bench_dfloat11_format import (
    Compressed,
    canonical_code,
    code_lengths,
    compress,
    lookup_tables,
)
from kernels_pallas.arg_specs import gaussian_weight


def exponents_of(compressed: Compressed) -> np.ndarray:
    """uint8[weights]: decodes one bit after another."""
    symbol_of = {code: symbol for symbol, code in compressed.code.items()}
    found: list[int] = []
    bits, value = 0, 0
    for bit in np.unpackbits(compressed.codes):
        bits, value = bits + 1, 2 * value + int(bit)
        if (bits, value) in symbol_of and len(found) < compressed.signs_mantissas.size:
            found.append(symbol_of[bits, value])
            bits, value = 0, 0
    return np.asarray(found, np.uint8)


def looked_up(compressed: Compressed, start: int) -> int:
    """The exponent whose code begins at a bit, by way of the tables."""
    bits = np.append(np.unpackbits(compressed.codes), np.zeros(32, np.uint8))
    table = 0
    while True:
        entry = int(compressed.tables[table, np.packbits(bits[start : start + 8])[0]])
        if entry < 240:
            return entry
        table, start = 256 - entry, start + 8


@pytest.fixture(scope="module")
def bits() -> np.ndarray:
    weights = np.asarray(gaussian_weight(61, 501, seed=0)).view(np.uint16).copy()
    # A rare exponent has a code longer than one table.
    weights[3, 7], weights[60, 500] = 0x0001, 0x6F80
    return weights


@pytest.fixture(scope="module")
def compressed(bits: np.ndarray) -> Compressed:
    return compress(bits)


def test_codes_and_bytes_give_the_weights_back(bits: np.ndarray, compressed: Compressed) -> None:
    exponents = exponents_of(compressed).astype(np.uint16)
    sign_mantissa = compressed.signs_mantissas.astype(np.uint16)
    found = (sign_mantissa & 0x80) << 8 | exponents << 7 | sign_mantissa & 0x7F
    np.testing.assert_array_equal(found.reshape(bits.shape), bits)
    assert compressed.nbytes < 0.75 * bits.nbytes


def test_slices_that_end_anywhere_give_the_same(
    bits: np.ndarray, compressed: Compressed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_dfloat11_format, "_SLICE", 997)
    again = compress(bits)
    for part in ("codes", "gaps", "positions"):
        np.testing.assert_array_equal(getattr(again, part), getattr(compressed, part))


def test_each_thread_and_block_finds_its_first_weight(compressed: Compressed) -> None:
    exponents = exponents_of(compressed)
    lengths = np.asarray([compressed.code[int(each)][0] for each in exponents])
    starts = np.append(0, np.cumsum(lengths)[:-1])
    gap_bits = np.unpackbits(compressed.gaps)
    for thread in range(int(starts[-1]) // 64 + 1):
        first = int(np.flatnonzero(starts >= 64 * thread)[0])
        gap = int("".join(map(str, gap_bits[5 * thread : 5 * thread + 5])), 2)
        assert starts[first] == 64 * thread + gap
        if thread % 512 == 0:
            assert compressed.positions[thread // 512] == first
    assert compressed.positions.size == 1 + -(-compressed.codes.size // 4096)
    assert compressed.positions[-1] == exponents.size


def test_the_tables_find_every_exponent(compressed: Compressed) -> None:
    exponents = exponents_of(compressed)
    lengths = np.asarray([compressed.code[int(each)][0] for each in exponents])
    assert lengths.max() > 8
    starts = np.append(0, np.cumsum(lengths)[:-1])
    rare = int(np.argmax(lengths))
    for place in [*range(50), rare, exponents.size - 1]:
        assert looked_up(compressed, int(starts[place])) == exponents[place]
    assert compressed.tables[-1, exponents[rare]] == lengths[rare]


def test_codes_have_the_lengths_of_huffman() -> None:
    counts = np.zeros(256, np.int64)
    counts[[100, 101, 102]] = (50, 30, 20)
    lengths = code_lengths(counts)
    assert lengths == {100: 1, 101: 2, 102: 3, 256: 3}
    assert canonical_code(lengths) == {100: (1, 0), 101: (2, 2), 102: (3, 6), 256: (3, 7)}


def test_codes_too_long_for_the_kernel_are_flattened() -> None:
    counts = np.zeros(256, np.int64)
    counts[:60] = np.minimum(2.0 ** np.arange(60), 2.0**62).astype(np.int64)
    lengths = code_lengths(counts)
    assert max(lengths.values()) <= 32
    assert sum(2.0**-bits for bits in lengths.values()) == 1
    assert lookup_tables(canonical_code(lengths)).shape[1] == 256


def test_exponents_that_the_format_cannot_store_are_refused() -> None:
    with pytest.raises(UserError, match=r"exponent 255.*give a matrix"):
        compress(np.full((2, 2), 0x7F80, np.uint16))


def test_only_the_file_of_the_package_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=r"decode\.ptx.*codecjax\[bench\]"):
        bench_dfloat11.kernel_file()
    (tmp_path / "decode.ptx").write_text("")
    assert bench_dfloat11.kernel_file() == tmp_path / "decode.ptx"
