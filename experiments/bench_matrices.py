"""Matrices to measure with: enough of them to go around a GPU's caches, and what they give."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import codecjax
from codecjax.codecs import encode
from codecjax.io.huggingface import read_folder
from codecjax.tiles import Residency, TiledMatrix, units_per_tile
from experiments.bench_settings import backend
from kernels_pallas.arg_specs import BY_NAME, activations, gaussian_weight
from kernels_pallas.implementations import XLA

WIDTH = 11
OTHER_WIDTHS = (8, 16)
LOSSY: tuple[tuple[str, dict[str, Any]], ...] = (
    ("int8_rans", {}),
    ("ecsq", {"bits_per_weight": 3.0}),
)

# The largest matrix of the embedded model: real weights, but few.
EMBEDDED = "embedded.largest"
_EMBEDDED_FOLDER = Path(__file__).parent / "embedded_model"

# Compressed bytes of all matrices of a measurement together: twice an H100's or H200's L2.
_ROTATED_BYTES = {"gpu": 100 * 2**20, "cpu": 0}
# Every array costs the host a microsecond or two a call, so a small matrix has few copies.
_MOST_COPIES = 160
_FEWEST_COPIES = 2

# What a call should keep the device busy for, so that the host can dispatch the next meanwhile.
_CALL_SECONDS = {"gpu": 5e-4, "cpu": 0.0}
# For guesses only: what a GPU moves and computes in a second, and the shortest kernel.
_GUESSED_BANDWIDTH = 3e12
_GUESSED_RATE = 6e14
_SHORTEST_KERNEL = 3e-6

# Of a product, rows that are compared with float64, and columns that are at once.
_CHECKED_ROWS = 256
_CHECKED_OUT = 2**13


@dataclasses.dataclass(frozen=True)
class Stored:
    """Several matrices of one shape, stored by one codec.

    Attributes:
      tiled: the matrices.
      decoded: bf16[OUT, K] each, what decoding must give.
    """

    tiled: tuple[TiledMatrix, ...]
    decoded: tuple[jax.Array, ...]

    @property
    def first(self) -> TiledMatrix:
        """One of the matrices, all alike."""
        return self.tiled[0]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Several matrices of one shape.

    Attributes:
      name: of the shape.
      plain: bf16[OUT, K] each.
    """

    name: str
    plain: tuple[jax.Array, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.plain[0].shape

    @functools.cached_property
    def dense(self) -> tuple[TiledMatrix, ...]:
        """Stored by codec bf16."""
        return tuple(encode(w, codec="bf16") for w in self.plain)

    def window(self, width: int = WIDTH) -> tuple[TiledMatrix, ...]:
        """Stored by codec window."""
        return self._stored("window", width=width)

    def rans(self) -> tuple[TiledMatrix, ...]:
        """Stored by codec rans."""
        return self._stored("rans")

    @functools.cached_property
    def lossy(self) -> tuple[Stored, ...]:
        """Stored by each lossy codec, whose matrices are what XLA decodes."""
        stored = []
        for codec, options in LOSSY:
            tiled = self._stored(codec, **options)
            decoded = (codecjax.decode(t, implementation=XLA) for t in tiled)
            stored.append(Stored(tiled, tuple(decoded)))
        return tuple(stored)

    def lossless(self, tiled: tuple[TiledMatrix, ...]) -> Stored:
        """What a lossless codec made of the matrices."""
        return Stored(tiled, self.plain)

    def _stored(self, codec: str, **options: Any) -> tuple[TiledMatrix, ...]:
        if self.name == EMBEDDED:
            t = encode(self.plain[0], codec=codec, **options)
            return tuple(jax.tree.map(jnp.copy, t) for _ in self.plain)
        return tuple(encode(w, codec=codec, **options) for w in self.plain)


def make_weights(name: str) -> Weights:
    """The matrices of a named shape; of the embedded model several copies of one."""
    if name == EMBEDDED:
        tensors = read_folder(_EMBEDDED_FOLDER).weights
        largest = max(tensors, key=lambda tensor: math.prod(tensors[tensor].shape))
        w = jnp.asarray(tensors[largest])
        return Weights(name, tuple(jnp.copy(w) for _ in range(_copies(w.shape))))
    spec = BY_NAME[name]
    copies = _copies((spec.out, spec.k))
    return Weights(name, tuple(gaussian_weight(spec.out, spec.k, seed) for seed in range(copies)))


def _copies(shape: tuple[int, ...]) -> int:
    # At 11 bits a weight, so not more bytes than are truly read.
    compressed = 11 * math.prod(shape) // 8
    return min(_MOST_COPIES, max(_FEWEST_COPIES, -(-_ROTATED_BYTES[backend()] // compressed)))


def applications(copies: int, moved_bytes: int, operations: float = 0.0) -> int:
    """How often a call applies a function, going around the copies a whole number of times.

    Args:
      copies: inputs in rotation.
      moved_bytes: read and written by one application, at least.
      operations: additions and multiplications of one application.
    """
    guess = max(moved_bytes / _GUESSED_BANDWIDTH, operations / _GUESSED_RATE, _SHORTEST_KERNEL)
    return copies * max(1, math.ceil(_CALL_SECONDS[backend()] / (copies * guess)))


@jax.jit
def _same_bits(a: jax.Array, b: jax.Array) -> jax.Array:
    integer = {2: jnp.uint16, 4: jnp.uint32}[a.dtype.itemsize]
    return jnp.array_equal(*(jax.lax.bitcast_convert_type(each, integer) for each in (a, b)))


def bit_equal(ours: list[jax.Array], theirs: list[jax.Array]) -> bool:
    """Whether arrays have the same bit patterns, each with its like."""
    if len(ours) != len(theirs):
        raise ValueError(f"there are {len(ours)} arrays to compare with {len(theirs)}")
    return all(bool(_same_bits(a, b)) for a, b in zip(ours, theirs, strict=True))


class Reference:
    """Products with one matrix, of which the first rows are known in float64.

    All batches of a shape begin with the same rows, so that a large matrix is made wide once.
    """

    def __init__(self, w: jax.Array, most_rows: int) -> None:
        """Takes bf16[OUT, K] and the most rows of x that it is multiplied by."""
        self._w = w
        self._x = activations(most_rows, w.shape[1], seed=0)

    def of(self, w: jax.Array) -> "Reference":
        """The reference of products of the same rows with another matrix."""
        return Reference(w, self._x.shape[0])

    def x(self, batch: int) -> jax.Array:
        """bf16[N, K]: the first rows of x."""
        return self._x[:batch]

    def error(self, y: jax.Array) -> float:
        """Norm of the error of a product float32[N, OUT], relative to that of the product."""
        expected = self._expected[: y.shape[0]]
        return float(
            np.linalg.norm(np.asarray(y[: expected.shape[0]]) - expected) / np.linalg.norm(expected)
        )

    @functools.cached_property
    def _expected(self) -> np.ndarray:
        wide, weights = np.asarray(self._x)[:_CHECKED_ROWS].astype(np.float64), np.asarray(self._w)
        # float64 takes four times the memory, so not all of the matrix at once.
        parts = [
            wide @ weights[first : first + _CHECKED_OUT].astype(np.float64).T
            for first in range(0, weights.shape[0], _CHECKED_OUT)
        ]
        return np.concatenate(parts, axis=1)


def all_pages(w: jax.Array, t: TiledMatrix) -> jax.Array:
    """bf16[T, rows, columns]: the tiles of a matrix, zeros beyond its edges."""
    (down, across), (rows, columns) = t.grid, t.tile
    padded = jnp.pad(w, ((0, down * rows - w.shape[0]), (0, across * columns - w.shape[1])))
    return padded.reshape(down, rows, across, columns).swapaxes(1, 2).reshape(-1, rows, columns)


def residency(pages: jax.Array, table: np.ndarray, tile: tuple[int, int]) -> Residency:
    """A residency with these pages and this page table, in arrays of its own."""
    decoded = jnp.zeros((table.size, units_per_tile(tile)), jnp.int32)
    return Residency(pages, jnp.asarray(table, jnp.int32), decoded)


def alone(function: Callable[[Any], Any]) -> Callable[[Any, None], tuple[Any, None]]:
    """The function as `timing.Repeated` takes it, handing nothing on."""
    return lambda argument, carried: (function(argument), carried)
