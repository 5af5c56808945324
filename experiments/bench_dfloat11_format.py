"""DFloat11's format, made with numpy.

Exponents are Huffman-coded, signs and mantissas stay bytes. The package's own encoder is a
Python loop over all weights.
"""

import dataclasses
import heapq
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from codecjax.errors import UserError

# The kernel's constants: threads of a block, and bits of code that each decodes.
THREADS = 512
_THREAD_BITS = 64
_BLOCK_BYTES = THREADS * _THREAD_BITS // 8
_GAP_BITS = 5

_LONGEST_CODE = 32
_END = 256
# An entry of a lookup table from here on is no exponent but names another table.
_FIRST_POINTER = 240
_MOST_TABLES = 256 - _FIRST_POINTER + 1

# Weights that are encoded at once.
_SLICE = 2**22

Code = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A matrix in DFloat11's format.

    Attributes:
      shape: (OUT, K).
      code: (bits, value) of each exponent that occurs and of the end.
      tables: uint8[tables, 256], see `lookup_tables`.
      codes: uint8[bytes], the exponents' codes one after another, the highest bit first.
      gaps: uint8[bytes], for each thread the first bit of its own where a code begins, in 5
        bits; one byte more than that, as the kernel reads it.
      positions: uint32[blocks + 1], number of the first weight of each block, and of all.
      signs_mantissas: uint8[OUT * K].
    """

    shape: tuple[int, int]
    code: Mapping[int, Code]
    tables: np.ndarray
    codes: np.ndarray
    gaps: np.ndarray
    positions: np.ndarray
    signs_mantissas: np.ndarray

    @property
    def nbytes(self) -> int:
        parts = (self.tables, self.codes, self.gaps, self.positions, self.signs_mantissas)
        return sum(part.nbytes for part in parts)


def compress(bits: np.ndarray) -> Compressed:
    """Compresses the bit patterns uint16[OUT, K] of a bf16 matrix."""
    flat = bits.ravel()
    exponents = ((flat >> 7) & 0xFF).astype(np.uint8)
    code = canonical_code(code_lengths(np.bincount(exponents, minlength=256)))
    codes, gaps, positions = _encode(exponents, code)
    signs_mantissas = (((flat >> 8) & 0x80) | (flat & 0x7F)).astype(np.uint8)
    out, k = bits.shape
    return Compressed((out, k), code, lookup_tables(code), codes, gaps, positions, signs_mantissas)


def code_lengths(counts: np.ndarray) -> dict[int, int]:
    """Bits of each exponent's Huffman code and of the end's, given how often each occurs.

    Where a code would be longer than the kernel reads, the rarest exponents count alike.
    """
    symbols = [int(symbol) for symbol in np.flatnonzero(counts)]
    if max(symbols) >= _FIRST_POINTER:
        raise UserError(
            f"DFloat11 cannot store weights with exponent {max(symbols)}: give a matrix "
            f"whose exponents are below {_FIRST_POINTER}"
        )
    rarest = sorted(symbols, key=lambda symbol: counts[symbol])
    for flattened in range(len(symbols) + 1):
        weights = {symbol: int(counts[symbol]) for symbol in symbols} | {_END: 1}
        weights |= dict.fromkeys(rarest[:flattened], 1)
        lengths = _huffman_lengths(weights)
        if max(lengths.values()) <= _LONGEST_CODE:
            return lengths
    raise AssertionError("257 symbols of equal weight have codes of at most 9 bits")


def _huffman_lengths(weights: Mapping[int, int]) -> dict[int, int]:
    lengths = dict.fromkeys(weights, 0)
    heap: list[tuple[int, int, tuple[int, ...]]] = [
        (weight, symbol, (symbol,)) for symbol, weight in weights.items()
    ]
    heapq.heapify(heap)
    tie = max(weights) + 1
    while len(heap) > 1:
        (one, _, left), (other, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in (*left, *right):
            lengths[symbol] += 1
        heapq.heappush(heap, (one + other, tie, left + right))
        tie += 1
    return lengths


def canonical_code(lengths: Mapping[int, int]) -> dict[int, Code]:
    """(bits, value) of each symbol: codes of one length follow one another."""
    code: dict[int, Code] = {}
    value, before = 0, 0
    for symbol in sorted(lengths, key=lambda symbol: (lengths[symbol], symbol)):
        value <<= lengths[symbol] - before
        before = lengths[symbol]
        code[symbol] = (before, value)
        value += 1
    return code


def lookup_tables(code: Mapping[int, Code]) -> np.ndarray:
    """uint8[tables, 256]: exponents by the next 8 bits of code, and the codes' lengths.

    The first table begins a code. An entry from 240 on says that table 256 minus it goes on with
    the 8 bits that follow. The last table has the length of each exponent's code.
    """
    words = {s: format(value, f"0{bits}b") for s, (bits, value) in code.items() if s != _END}

    def whole_bytes(word: str) -> Iterable[str]:
        return (word[:end] for end in range(0, len(word) - (len(word) - 1) % 8, 8))

    prefixes = sorted(
        {prefix for word in words.values() for prefix in whole_bytes(word)} | {""},
        key=lambda prefix: (len(prefix), prefix),
    )
    if len(prefixes) > _MOST_TABLES:
        raise UserError(f"DFloat11 would need {len(prefixes)} tables: give another matrix")
    tables = np.full((len(prefixes) + 1, 256), next(iter(words)), np.uint8)
    for number, prefix in enumerate(prefixes):
        for symbol, word in words.items():
            rest = word.removeprefix(prefix)
            if not word.startswith(prefix) or not rest:
                continue
            if len(rest) > 8:
                tables[number, int(rest[:8], 2)] = 256 - prefixes.index(prefix + rest[:8])
            else:
                first = int(rest.ljust(8, "0"), 2)
                tables[number, first : first + (1 << (8 - len(rest)))] = symbol
    tables[-1] = 0
    for symbol, word in words.items():
        tables[-1, symbol] = len(word)
    return tables


def _encode(
    exponents: np.ndarray, code: Mapping[int, Code]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, gaps and positions, see `Compressed`, of exponents uint8[weights]."""
    lengths, values = np.zeros(256, np.int64), np.zeros(256, np.uint64)
    for symbol, (bits, value) in code.items():
        if symbol != _END:
            lengths[symbol], values[symbol] = bits, value
    total = int(np.bincount(exponents, minlength=256) @ lengths)
    nbytes = -(-total // 8)
    blocks = -(-nbytes // _BLOCK_BYTES)
    # Sums of words whose bits are apart are exact in float64, and bincount has no other.
    words = np.zeros(total // 32 + 3, np.float64)
    gaps = _Firsts(blocks * THREADS, np.uint8)
    positions = _Firsts(blocks + 1, np.uint32)
    end = 0
    for first in range(0, exponents.size, _SLICE):
        here = exponents[first : first + _SLICE]
        ends = np.cumsum(lengths[here]) + end
        starts, end = ends - lengths[here], int(ends[-1])
        shifted = values[here] << (64 - lengths[here] - (starts & 31)).astype(np.uint64)
        low = int(starts[0] >> 5)
        size = int(starts[-1] >> 5) - low + 2
        for after, half in ((0, shifted >> np.uint64(32)), (1, shifted & np.uint64(0xFFFFFFFF))):
            index = (starts >> 5) - low + after
            words[low : low + size] += np.bincount(index, half.astype(np.float64), size)
        gaps.offer(starts // _THREAD_BITS, starts % _THREAD_BITS)
        numbers = np.arange(first, first + here.size)
        positions.offer(starts // (8 * _BLOCK_BYTES), numbers)
    positions.values[-1] = exponents.size
    codes = words.astype(np.uint64).astype(">u4").view(np.uint8)[:nbytes].copy()
    high = (gaps.values << (8 - _GAP_BITS)).astype(np.uint8)
    gap_bits = np.unpackbits(high[:, None], axis=1)[:, :_GAP_BITS]
    return codes, np.append(np.packbits(gap_bits), np.uint8(0)), positions.values


class _Firsts:
    """The first value that was offered for each key; keys never fall."""

    def __init__(self, size: int, dtype: Any) -> None:
        self.values = np.zeros(size, dtype)
        self._seen = np.zeros(size, bool)

    def offer(self, keys: np.ndarray, values: np.ndarray) -> None:
        new = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        new = new[~self._seen[keys[new]]]
        self.values[keys[new]] = values[new]
        self._seen[keys[new]] = True
