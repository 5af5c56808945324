"""Which objects are worth most under a byte budget: the 0/1 knapsack."""

import math
from collections.abc import Sequence

import numpy as np

# Objects times states of the dynamic program: bounds its memory (bytes) and time.
MAX_STATES = 20_000_000
# Values are compared as whole multiples of the largest one's 2**-40, so that sums that are
# equal on paper are equal in the program and ties can be broken by order.
_RESOLUTION = 2.0**40


def knapsack(values: Sequence[float], sizes: Sequence[int], budget: int) -> tuple[int, ...]:
    """Indices of a most valuable subset whose sizes sum to at most `budget` bytes.

    Objects of value 0 or less are never chosen. Among subsets of equal value the one with
    the earlier objects is chosen. The answer is exact (values compared to one part in 10^12
    of the largest) while objects * budget / gcd(sizes) <= MAX_STATES. Beyond that it is the
    better of two feasible answers: greedy by value per byte, exact for equal sizes, and the
    dynamic program with sizes rounded up to a coarser unit.

    Args:
      values: value of each object, any unit.
      sizes: bytes of each object, positive.
      budget: bytes, not negative.

    Returns:
      Ascending indices.
    """
    return _solve(values, sizes, budget)[0]


def knapsack_bound(values: Sequence[float], sizes: Sequence[int], budget: int) -> float:
    """Upper bound on the value of any subset within `budget` bytes.

    The optimum itself where `knapsack` is exact, else that of the relaxation in which parts
    of objects may be taken.
    """
    chosen, exact = _solve(values, sizes, budget)
    if exact:
        return float(sum(values[index] for index in chosen))
    total, free = 0.0, budget
    positive = [index for index in range(len(values)) if values[index] > 0]
    for index in sorted(positive, key=lambda index: -values[index] / sizes[index]):
        share = min(1.0, free / sizes[index])
        total += share * values[index]
        free -= min(free, sizes[index])
    return total


def _solve(
    values: Sequence[float], sizes: Sequence[int], budget: int
) -> tuple[tuple[int, ...], bool]:
    """(`knapsack`'s answer, whether it is exact)."""
    candidates = [i for i in range(len(values)) if values[i] > 0 and sizes[i] <= budget]
    if sum(sizes[i] for i in candidates) <= budget:
        return tuple(candidates), True
    size = np.array([sizes[i] for i in candidates], dtype=np.int64)
    value = np.array([values[i] for i in candidates], dtype=np.float64)
    worth = np.rint(value / value.max() * _RESOLUTION).astype(np.int64)
    unit = math.gcd(*size.tolist())
    states = MAX_STATES // len(candidates)
    exact = budget // unit < states
    if exact:
        chosen = _dynamic_program(worth, size // unit, budget // unit)
    else:
        chosen = _greedy(worth, size, budget)
        if states > 1:
            coarse = -(-budget // (states - 1))
            rounded = _dynamic_program(worth, -(-size // coarse), budget // coarse)
            if worth[rounded].sum() > worth[chosen].sum():
                chosen = rounded
    return tuple(sorted(candidates[index] for index in chosen)), exact


def _dynamic_program(worth: np.ndarray, size: np.ndarray, capacity: int) -> list[int]:
    """Exact choice for whole `size` and `capacity`; O(objects * capacity)."""
    best = np.zeros(capacity + 1, dtype=np.int64)
    take = np.zeros((len(worth), capacity + 1), dtype=bool)
    # From the last object to the first, so that the walk below meets the first object first
    # and takes it whenever some optimal choice holds it.
    for index in range(len(worth) - 1, -1, -1):
        own = int(size[index])
        if own > capacity:
            continue
        with_object = best[: capacity + 1 - own] + worth[index]
        take[index, own:] = with_object >= best[own:]
        np.maximum(best[own:], with_object, out=best[own:])
    chosen = []
    for index in range(len(worth)):
        if take[index, capacity]:
            chosen.append(index)
            capacity -= int(size[index])
    return chosen


def _greedy(worth: np.ndarray, size: np.ndarray, budget: int) -> list[int]:
    """Takes what fits in order of worth per byte, or the best single object if that is more."""
    chosen, free = [], budget
    for index in np.argsort(-worth / size, kind="stable").tolist():
        if size[index] <= free:
            chosen.append(index)
            free -= int(size[index])
    single = int(np.argmax(worth))
    return chosen if worth[chosen].sum() >= worth[single] else [single]
