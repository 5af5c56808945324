"""How often each magnitude occurs in weights, by the spread of their rows and the level of their
columns' importance.

bf16 has 32,640 finite magnitudes, so counts of them say all that the search for a step needs to
know of weights, however many these are: a step's rate and distortion follow from the counts.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs.finite import check_finite

# Finite magnitudes of bf16, which ascend as their bit patterns do.
MAGNITUDES = 0x7F80
# A row's spread is its mean magnitude; bins of spreads are a quarter of an octave wide, so that
# what a table loses by rows whose spread is not quite its own is 0.004 bits a weight.
_BINS_PER_OCTAVE = 4
# Of rows of zeros. Others are above -4 * 149.
SILENT = -1000
# Weights that are counted at a time.
_AT_ONCE = 1 << 24


def magnitude_values() -> np.ndarray:
    """float64[32640]: the finite magnitudes of bf16, ascending."""
    return (np.arange(MAGNITUDES, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of magnitudes.

    Attributes:
      bins: int[B], ascending, the spreads that rows have.
      levels: int[L], ascending, the levels of importance that columns have.
      counts: float64[B, L, 32640].
      tops: float32[ROWS], the largest magnitude of each row.
      mean: the mean magnitude.
      is_shifted: whether the rows of what was counted are shifted as a plan said.
    """

    bins: np.ndarray
    levels: np.ndarray
    counts: np.ndarray
    tops: np.ndarray
    mean: float
    is_shifted: bool = False

    @property
    def row_length(self) -> float:
        """Weights of a row, in the mean."""
        return float(self.counts.sum()) / len(self.tops)


@jax.jit
def spread_bins(w: jax.Array) -> jax.Array:
    """int32[OUT]: the spread of each row of bf16[OUT, K]; SILENT for rows of zeros."""
    magnitudes = jnp.abs(w).astype(jnp.float32)
    # Divided first, so that the sum stays finite.
    mean = jnp.sum(magnitudes / w.shape[1], axis=1)
    bins = jnp.floor(_BINS_PER_OCTAVE * jnp.log2(mean)).astype(jnp.int32)
    return jnp.where(mean > 0, bins, SILENT)


@functools.partial(jax.jit, static_argnames=("places",))
def _count(w: jax.Array, row: jax.Array, column: jax.Array, places: int) -> jax.Array:
    """int32[places * 32640]: counts of magnitudes by the sum of a row's and a column's number."""
    bits = jax.lax.bitcast_convert_type(w, jnp.uint16) & 0x7FFF
    place = (row[:, None] + column) * MAGNITUDES + bits.astype(jnp.int32)
    return jnp.zeros(places * MAGNITUDES, jnp.int32).at[place.reshape(-1)].add(1)


def histogram(weights: Iterable[tuple[jax.Array, np.ndarray]]) -> Histogram:
    """Counts weights, one after another; UserError where one is not finite.

    Args:
      weights: pairs of bf16[OUT, K] and its columns' levels of importance, int[K].
    """
    found: dict[tuple[int, int], np.ndarray] = {}
    tops: list[np.ndarray] = []
    for w, levels in weights:
        check_finite(w, "ecsq")
        tops.append(np.asarray(jnp.max(jnp.abs(w), axis=1)).astype(np.float32))
        own_bins, row = np.unique(np.asarray(spread_bins(w)), return_inverse=True)
        own_levels, column = np.unique(levels, return_inverse=True)
        both = list(itertools.product(own_bins.tolist(), own_levels.tolist()))
        numbers = jnp.asarray(row * len(own_levels), jnp.int32), jnp.asarray(column, jnp.int32)
        rows = max(1, _AT_ONCE // w.shape[1])
        for start in range(0, w.shape[0], rows):
            part = slice(start, start + rows)
            counts = _count(w[part], numbers[0][part], numbers[1], len(both))
            by_place = np.asarray(counts, np.float64).reshape(len(both), -1)
            for each, of_place in zip(both, by_place, strict=True):
                found[each] = found.get(each, 0.0) + of_place
    bins, levels_found = (sorted({each[axis] for each in found}) for axis in range(2))
    counts = np.zeros((len(bins), len(levels_found), MAGNITUDES))
    for (spread, level), of_place in found.items():
        counts[bins.index(spread), levels_found.index(level)] = of_place
    mean = float((counts.sum(axis=(0, 1)) @ magnitude_values()) / counts.sum())
    return Histogram(np.array(bins), np.array(levels_found), counts, np.concatenate(tops), mean)
