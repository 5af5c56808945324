"""The search of `ecsq`: the step, and the tables, for a target rate or a target distortion.

All rows of all matrices that are planned together have one step s, so one Lagrange multiplier
s^2 ln 2 / 6: bits go where they reduce the squared error most, as reverse water-filling has it.
Rows are told apart by their spread: rows of like spread share a table of frequencies.
"""

import dataclasses
import itertools

import numpy as np

from codecjax.codecs import rans_coder
from codecjax.codecs.ecsq_histogram import Histogram
from codecjax.codecs.ecsq_sums import Sums, entropy, quantised
from codecjax.codecs.ecsq_symbols import FINE, PAIR, SINGLE, SymbolLayout, signed_counts

# A table number has 3 bits.
MOST_TABLES = 8
# How far a rate may be above its target.
_EXCESS = 1.01
# A layout with half the steps for a decoder is taken where it costs up to 2 % more bits.
_MORE_BITS = 0.02
# Of errors that are compared.
_LEAST_MSE = 1e-60
# Weights of a table that may be so far beyond its largest index that they get no frequency.
_FEW_FAR = 0.01
# Of the interval of steps, which is then less than a millionth of an octave.
_HALVINGS = 26
# Rounds in which tables and what they cost are found.
_PLANS = 4
# The finest step, as a share of the mean magnitude.
_FINEST = 1 / 128
# Steps that float32 has to full precision, with the shifts of rows.
_FINEST_OF_ALL, _COARSEST_OF_ALL = 2.0**-120, 2.0**127
# What the encoder's last states hold of a lane's bits, in the mean.
_BITS_IN_STATE = 8


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is stored beside the coded symbols.

    Attributes:
      weights: weights without padding.
      lanes: lanes of all groups, each of which has a state.
      fixed_bits: of states, starts and rows.
      copies: how often each table is stored.
    """

    weights: int
    lanes: int
    fixed_bits: int
    copies: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How to quantise and code matrices.

    Arrays by table have those of rows from `symbols.first_table` on.

    Attributes:
      step: of all rows that are not shifted, a float32 value.
      first_bins: int[n], ascending: the smallest spread of the rows of each of their tables.
      zones: float32[TABLES, Q + 1], dead zones at importance 1.
      largest: int32[TABLES], largest index.
      frequencies: int32[TABLES, 256], of symbols.
      symbols: how indices are symbols.
      expected_bits: bits a weight, everything included.
      expected_mse: mean squared error of a weight.
    """

    step: float
    first_bins: np.ndarray
    zones: np.ndarray
    largest: np.ndarray
    frequencies: np.ndarray
    symbols: SymbolLayout
    expected_bits: float
    expected_mse: float

    def tables_of(self, spreads: np.ndarray) -> np.ndarray:
        """int[OUT]: the table of each row, given its spread."""
        number = np.searchsorted(self.first_bins, spreads, side="right") - 1
        return np.maximum(number, 0) + self.symbols.first_table


def _merged(
    histogram: Histogram, step: float, largest: int, table_bits: int, tables: int
) -> np.ndarray:
    """int[TABLES]: first bin, by number, of each table; at most `tables`, each worth its bits."""
    sums = Sums(histogram.counts, histogram.levels, histogram.row_length)
    counts = quantised(sums, step, largest).counts
    parts = list(counts)
    first = list(range(len(parts)))
    while len(parts) > 1:
        both = np.stack([one + other for one, other in itertools.pairwise(parts)])
        alone = entropy(np.stack(parts))
        lost = entropy(both) - alone[1:] - alone[:-1]
        least = int(np.argmin(lost))
        if len(parts) <= tables and lost[least] > table_bits:
            break
        parts[least : least + 2] = [both[least]]
        del first[least + 1]
    return np.array(first)


@dataclasses.dataclass(frozen=True)
class Target:
    """What a plan aims at: bits a weight, everything included, or where `mse` is above 0 that."""

    bits_per_weight: float
    mse: float = 0.0


def _step_for(
    target: Target,
    histogram: Histogram,
    sums: Sums,
    largest: int,
    layout: Layout,
    fixed_bits: float,
) -> float:
    """The coarsest step that meets a target, or the finest there is; a float32 value.

    Args:
      target: the target.
      histogram: of the weights.
      sums: over it, by table.
      largest: largest index.
      layout: of the weights.
      fixed_bits: what is stored beside the ideally coded indices.
    """

    def is_too_coarse(step: float) -> bool:
        found = quantised(sums, step, largest)
        if target.mse > 0:
            return found.error > target.mse * layout.weights
        return found.bits + fixed_bits < target.bits_per_weight * layout.weights

    low = max(_FINEST * histogram.mean, histogram.mean / (0.95 * largest), _FINEST_OF_ALL)
    # With this step every weight is 0, unless it is next to the largest float32.
    high = max(min(2 * float(histogram.tops.max()), _COARSEST_OF_ALL), 2 * low)
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if is_too_coarse(middle) else (middle, high)
    return float(np.float32(low))


@dataclasses.dataclass(frozen=True, eq=False)
class _Coder:
    """A table's frequencies int32[256], largest index, and the bits that its symbols take."""

    frequencies: np.ndarray
    largest: int
    coded_bits: float


def _coder(counts: np.ndarray, far: float, symbols: SymbolLayout, full_range: bool) -> _Coder:
    """The coder of indices.

    Args:
      counts: float64[Q + 1] of their magnitudes.
      far: how many of the largest are of weights far beyond, whose rows will be shifted: no
        frequencies are kept for these.
      symbols: the layout.
      full_range: whether the largest index must be that of the layout.
    """
    near = counts.copy()
    if far < _FEW_FAR * counts.sum():
        near[-1] -= far
    largest = max(1, int(np.max(np.flatnonzero(near), initial=0)))
    largest = symbols.largest if full_range else largest
    # An index that does not occur may in rows that are shifted.
    occurring = signed_counts(np.maximum(near[: largest + 1], 0.5), symbols)
    frequencies = rans_coder.frequencies(occurring, symbols.bits)
    lengths = symbols.bits - np.log2(np.maximum(frequencies, 1))
    bits = float(occurring @ lengths) * float(counts.sum() / max(near.sum(), 1))
    if symbols is FINE:
        bits += 3 * float(counts.sum())
    return _Coder(frequencies, largest, bits)


def _planned(histogram: Histogram, layout: Layout, target: Target, symbols: SymbolLayout) -> Plan:
    """The plan with symbols of one layout."""
    most, own = symbols.largest, symbols.first_table
    table_bits = layout.copies * 32 * ((1 << symbols.bits) + 1)
    first, beyond_ideal = np.zeros(1, int), 0.0
    # The first rounds choose tables that are worth their bits at the step of the round before, and
    # each knows of the one before what the coder adds to an ideal one's bits.
    for number in range(_PLANS):
        by_table = np.add.reduceat(histogram.counts, first, axis=0)
        sums = Sums(by_table, histogram.levels, histogram.row_length)
        fixed_bits = layout.fixed_bits + (own + len(first)) * table_bits
        step = _step_for(target, histogram, sums, most, layout, fixed_bits + beyond_ideal)
        found = quantised(sums, step, most)
        coders = [
            _coder(counts, far, symbols, histogram.is_shifted)
            for counts, far in zip(found.counts, found.far, strict=True)
        ]
        beyond_ideal = sum(each.coded_bits for each in coders) - found.bits
        beyond_ideal -= _BITS_IN_STATE * layout.lanes
        if number < _PLANS - 2:
            first = _merged(histogram, step, most, table_bits, MOST_TABLES - own)
    frequencies = [each.frequencies for each in coders]
    if own:
        uniform = np.arange(rans_coder.ALPHABET) < (1 << 3)
        frequencies.insert(0, uniform.astype(np.int32) << symbols.bits - 3)
    return Plan(
        step=step,
        first_bins=histogram.bins[first],
        zones=np.pad(found.zones, ((own, 0), (0, 0))).astype(np.float32),
        largest=np.array([0] * own + [each.largest for each in coders], np.int32),
        frequencies=np.stack(frequencies),
        symbols=symbols,
        expected_bits=(found.bits + fixed_bits + beyond_ideal) / layout.weights,
        expected_mse=found.error / layout.weights,
    )


def make_plan(histogram: Histogram, layout: Layout, target: Target) -> Plan:
    """The plan that meets a target best, of those with symbols of each layout.

    Args:
      histogram: of all weights, padding included.
      layout: of what is stored of them.
      target: what to meet. Where it cannot be met the plan is as near as can be.
    """
    # Beyond these rates the others are better, whatever the weights.
    layouts = [
        symbols
        for symbols, low, high in ((PAIR, 0, 4), (SINGLE, 0, np.inf), (FINE, 5, np.inf))
        if target.mse > 0 or low <= target.bits_per_weight <= high
    ]
    plans = [_planned(histogram, layout, target, symbols) for symbols in layouts]
    met = [plan for plan in plans if _meets(plan, target)]
    if not met:
        return min(plans, key=lambda plan: plan.expected_bits)
    best = min(met, key=_cost)
    most = _cost(best) + _MORE_BITS * best.expected_bits
    # The fewer steps a decoder has, the better.
    return next(plan for plan in met if _cost(plan) <= most)


def _meets(plan: Plan, target: Target) -> bool:
    """Whether a plan's rate does not exceed the target, or there is no target rate."""
    return target.mse > 0 or plan.expected_bits <= _EXCESS * target.bits_per_weight


def _cost(plan: Plan) -> float:
    """Bits a weight, up to a constant, if its error were 1: a bit more divides that by 4."""
    return plan.expected_bits + 0.5 * float(np.log2(max(plan.expected_mse, _LEAST_MSE)))
