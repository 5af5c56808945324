"""What only a known future tells: next uses, and a packing of keeps.

An interval is the time from one access of an object to its next access. Keeping the object
over the whole interval makes the second access a hit and holds the object's bytes in every
slot between; slot t lies between accesses t and t + 1. A policy, online or offline, is a set
of kept intervals whose bytes fit the budget in every slot.
"""

from collections.abc import Sequence

import numpy as np

NEVER = np.iinfo(np.int64).max


def next_uses(trace: Sequence[int]) -> list[int]:
    """Per access, the position of the next access of the same object, or NEVER."""
    following: dict[int, int] = {}
    uses = [NEVER] * len(trace)
    for position in range(len(trace) - 1, -1, -1):
        uses[position] = following.get(trace[position], NEVER)
        following[trace[position]] = position
    return uses


def pack_intervals(trace: Sequence[int], sizes: Sequence[int], budget: int) -> list[bool]:
    """Per access, whether a greedy packing keeps the object until its next access.

    Intervals are taken in order of bytes * length while they fit, which favours many hits.
    For a cyclic trace that is the smallest objects first, hence the most hits possible; for
    other traces with unequal sizes it is a heuristic (the problem is NP-hard).
    """
    uses = next_uses(trace)
    kept = [False] * len(trace)
    held = np.zeros(len(trace), dtype=np.int64)
    starts = [start for start, end in enumerate(uses) if end != NEVER]
    starts.sort(key=lambda start: (sizes[trace[start]] * (uses[start] - start), start))
    for start in starts:
        size, slots = sizes[trace[start]], held[start : uses[start]]
        if slots.max() + size <= budget:
            slots += size
            kept[start] = True
    return kept
