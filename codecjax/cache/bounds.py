"""Proven upper bounds on what any policy, online or offline, can reach on a trace.

They rest on intervals, slots and their capacity, see `codecjax.cache.offline`.
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from codecjax.cache.knapsack import knapsack_bound
from codecjax.cache.offline import NEVER, next_uses
from codecjax.cache.simulate import simulate


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The most that any policy can reach, each for itself; starts with an empty cache.

    Attributes:
      hits: count.
      byte_hits: bytes.
      cost_hits: seconds.
    """

    hits: int
    byte_hits: int
    cost_hits: float


def hit_bounds(
    trace: Sequence[int] | np.ndarray,
    sizes: Sequence[int] | np.ndarray,
    costs: Sequence[float] | np.ndarray | None,
    budget: int,
) -> Bounds:
    """Upper bounds on `simulate`'s hits, byte_hits and cost_hits, for every policy.

    On a cyclic trace they are optima (`pinned` reaches the one on cost hits), as are those on
    hits and byte hits where all sizes are equal; elsewhere perhaps no policy reaches them.
    Seconds hold up to the rounding of their sum.

    Args and errors: as `simulate`.
    """
    optimum = simulate("min_bypass", trace, sizes, costs, budget)
    ids = [movement.object_id for movement in optimum.movements]
    byte_sizes = [int(size) for size in sizes]
    seconds = [float(cost) for cost in (sizes if costs is None else costs)]
    cost_hits = upper_bound(ids, byte_sizes, seconds, budget)
    if len({byte_sizes[object_id] for object_id in ids}) <= 1:
        dearest = max([0.0, *(seconds[object_id] for object_id in ids)])
        return Bounds(optimum.hits, optimum.byte_hits, min(cost_hits, optimum.hits * dearest))
    return Bounds(
        # A millionth of a hit forgives the rounding of the relaxations' sums.
        math.floor(upper_bound(ids, byte_sizes, [1.0] * len(byte_sizes), budget) + 1e-6),
        math.floor(upper_bound(ids, byte_sizes, byte_sizes, budget) + 1e-6),
        cost_hits,
    )


def upper_bound(
    trace: Sequence[int], sizes: Sequence[int], values: Sequence[float], budget: int
) -> float:
    """A proven upper bound on the summed value of the hits of any policy.

    With values all 1 it bounds hits, with values = sizes byte hits, with values = seconds
    cost hits. The smaller of two relaxations; on a cyclic trace the first one is the optimum.

    - cuts: at one moment the intervals that cross it compete for the budget, a knapsack.
      Every interval is counted at one cut, and cuts are placed so that each crosses one.
    - area: the kept intervals' bytes * length fit into the budget summed over all slots,
      intervals by value per byte and slot, the last one in part (Berger et al. 2018, PFOO-L).

    Args:
      trace: object ids.
      sizes: bytes of each object, positive.
      values: value of a hit on each object; negative counts as 0.
      budget: bytes, not negative.
    """
    uses = next_uses(trace)
    intervals = [
        (start, end)
        for start, end in enumerate(uses)
        if end != NEVER and sizes[trace[start]] <= budget and values[trace[start]] > 0
    ]
    return min(
        _cut_bound(trace, sizes, values, budget, intervals),
        _area_bound(trace, sizes, values, budget, intervals),
    )


def _cut_bound(
    trace: Sequence[int],
    sizes: Sequence[int],
    values: Sequence[float],
    budget: int,
    intervals: list[tuple[int, int]],
) -> float:
    # The earliest end of an interval that no cut crosses yet is where the next cut must be.
    cuts: list[int] = []
    for start, end in sorted(intervals, key=lambda interval: interval[1]):
        if not cuts or start >= cuts[-1]:
            cuts.append(end)
    crossing: list[list[int]] = [[] for _ in cuts]
    for start, _ in intervals:
        crossing[bisect.bisect_right(cuts, start)].append(trace[start])
    known: dict[tuple[int, ...], float] = {}
    total = 0.0
    for objects in (tuple(sorted(crossed)) for crossed in crossing):
        if objects not in known:
            known[objects] = knapsack_bound(
                [values[o] for o in objects], [sizes[o] for o in objects], budget
            )
        total += known[objects]
    return total


def _area_bound(
    trace: Sequence[int],
    sizes: Sequence[int],
    values: Sequence[float],
    budget: int,
    intervals: list[tuple[int, int]],
) -> float:
    wanted = np.zeros(len(trace) + 1, dtype=np.int64)
    for start, end in intervals:
        wanted[start] += sizes[trace[start]]
        wanted[end] -= sizes[trace[start]]
    area = int(np.minimum(np.cumsum(wanted), budget).sum())
    total = 0.0
    needs = [
        (sizes[trace[start]] * (end - start), values[trace[start]]) for start, end in intervals
    ]
    for need, value in sorted(needs, key=lambda item: item[0] / item[1]):
        if area <= 0:
            break
        total += value * min(1.0, area / need)
        area -= need
    return total
