"""What a step does to weights, from counts of magnitudes: how often each index occurs, the error.

All of it follows from sums over the magnitudes between two thresholds, so that a step is tried in
a millisecond, whatever the number of weights.
"""

import dataclasses
import functools

import numpy as np

from codecjax.codecs.ecsq_histogram import magnitude_values
from codecjax.codecs.ecsq_levels import importance_of
from codecjax.codecs.ecsq_quantiser import dead_zones, weighted_zones

# Thresholds and the rates that they follow from settle in a few rounds.
_ROUNDS = 8


def entropy(counts: np.ndarray) -> np.ndarray:
    """Bits of symbols that occur int[..., S] times, by an ideal coder of their own: [...]."""
    total = counts.sum(axis=-1)
    share = np.where(counts > 0, counts, 1) / np.where(total > 0, total, 1)[..., None]
    return -np.sum(counts * np.log2(share), axis=-1)


class Sums:
    """Sums over the magnitudes of rows that share a table, between any two thresholds.

    Attributes:
      tables: TABLES.
      importance: float64[L], what errors at each level count.
    """

    def __init__(self, counts: np.ndarray, levels: np.ndarray, row_length: float) -> None:
        """Of counts float64[TABLES, L, 32640], at levels int[L]."""
        self._counts, self._row_length = counts, row_length
        self.tables = len(counts)
        self.importance = importance_of(levels)
        self.values = magnitude_values()
        powers = np.stack([counts * self.values**power for power in range(3)])
        self._below = np.pad(np.cumsum(powers, axis=-1), ((0, 0), (0, 0), (0, 0), (1, 0)))

    def between(self, thresholds: np.ndarray) -> np.ndarray:
        """float64[3, TABLES, L, Q + 1]: sums of the powers 0, 1 and 2 of magnitudes by index.

        Args:
          thresholds: float64[TABLES, L, Q], where each index from 1 on begins.
        """
        edges = np.searchsorted(self.values, thresholds)
        ends = ((0, 0), (0, 0), (1, 1))
        edges = np.pad(edges, ends, constant_values=((0, 0), (0, 0), (0, len(self.values))))
        return np.diff(np.take_along_axis(self._below, edges[None], axis=-1), axis=-1)

    def above(self, threshold: float) -> np.ndarray:
        """float64[TABLES]: how many magnitudes are above a threshold."""
        first = int(np.searchsorted(self.values, threshold, side="right"))
        return self._counts[:, :, first:].sum(axis=(1, 2))

    def error_of_largest(self, thresholds: np.ndarray, step: float, largest: int) -> np.ndarray:
        """float64[TABLES, L]: squared error of the magnitudes that have the largest index.

        One far beyond it may have its row shifted: its error is at most that of all the row,
        then so coarse that it is within reach.

        Args:
          thresholds: float64[TABLES, L], where the largest index begins.
          step: the step.
          largest: largest index.
        """
        errors = np.zeros(thresholds.shape)
        for place, first in np.ndenumerate(np.searchsorted(self.values, thresholds)):
            values = self.values[first:]
            saturated = np.square(values - largest * step)
            shifted = self._row_length * np.square(values / largest) / 12
            far = values > (largest + 0.5) * step
            error = np.where(far, np.minimum(saturated, shifted), saturated)
            errors[place] = self._counts[*place, first:] @ error
        return errors


@dataclasses.dataclass(frozen=True, eq=False)
class Quantised:
    """What a step does to weights.

    Attributes:
      sums: over the weights.
      step: the step.
      zones: float64[TABLES, Q + 1], dead zones at importance 1.
    """

    sums: Sums
    step: float
    zones: np.ndarray

    @functools.cached_property
    def _thresholds(self) -> np.ndarray:
        """float64[TABLES, L, Q], where each index from 1 on begins."""
        zones = weighted_zones(self.zones, self.sums.importance)
        edges = self.step * (np.arange(zones.shape[-1]) - 0.5 + zones)
        return np.maximum.accumulate(edges[..., 1:], axis=-1)

    @functools.cached_property
    def _powers(self) -> np.ndarray:
        return self.sums.between(self._thresholds)

    @property
    def counts(self) -> np.ndarray:
        """float64[TABLES, Q + 1]: how often each index occurs, of either sign."""
        return self._powers[0].sum(axis=1)

    @property
    def far(self) -> np.ndarray:
        """float64[TABLES]: how many weights are beyond the largest index."""
        return self.sums.above(self.step * (self.zones.shape[1] - 0.5))

    @property
    def bits(self) -> float:
        """Of all indices and their signs, by an ideal coder."""
        return float(entropy(self.counts).sum() + self.counts[:, 1:].sum())

    @property
    def error(self) -> float:
        """Sum of squared errors, whatever their importance."""
        number, first, second = self._powers
        value = self.step * np.arange(self.zones.shape[1])
        error = second - 2 * value * first + np.square(value) * number
        largest = self.zones.shape[1] - 1
        error[..., -1] = self.sums.error_of_largest(self._thresholds[..., -1], self.step, largest)
        return float(np.maximum(error, 0).sum())


def quantised(sums: Sums, step: float, largest: int) -> Quantised:
    found = Quantised(sums, step, np.zeros((sums.tables, largest + 1)))
    for _ in range(_ROUNDS):
        number = found.counts + 0.1
        bits = -np.log2(number / number.sum(axis=-1, keepdims=True))
        bits[:, 1:] += 1
        found = Quantised(sums, step, dead_zones(bits))
    return found
