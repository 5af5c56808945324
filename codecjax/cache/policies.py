"""Cache policies: which objects stay, given ids, sizes in bytes and a budget in bytes.

A policy is told of every access in order and answers whether it was a hit, whether the
missed object was admitted, and what was evicted for it. It never holds more bytes than its
budget, and an object larger than the budget is never admitted and evicts nothing. The same
classes serve `simulate` (no model) and `Controller` (pages of a model).
"""

import heapq
import operator
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from codecjax.cache.knapsack import knapsack
from codecjax.cache.offline import NEVER, next_uses, pack_intervals
from codecjax.errors import UserError

POLICIES = ("pinned", "lru", "fifo", "lfu", "none", "all", "belady", "min_bypass")
OFFLINE_POLICIES = ("belady", "min_bypass")


class Access(NamedTuple):
    """What one access did: a hit, or a miss that was admitted (evicting objects) or not."""

    hit: bool
    admitted: bool
    evicted: tuple[int, ...]


HIT = Access(hit=True, admitted=False, evicted=())
BYPASSED = Access(hit=False, admitted=False, evicted=())


class Policy(Protocol):
    """State of one cache."""

    bytes_held: int

    def access(self, object_id: int, protected: Collection[int] = ()) -> Access:
        """Accesses an object; a miss that would evict a `protected` object is not admitted."""


class _Static:
    """Admits a fixed choice of objects at their first access and never evicts."""

    def __init__(self, sizes: Sequence[int], chosen: Collection[int]) -> None:
        self._sizes = sizes
        self._chosen = frozenset(chosen)
        self._resident: set[int] = set()
        self.bytes_held = 0

    def access(self, object_id: int, protected: Collection[int] = ()) -> Access:
        del protected  # nothing is ever evicted
        if object_id in self._resident:
            return HIT
        if object_id not in self._chosen:
            return BYPASSED
        self._resident.add(object_id)
        self.bytes_held += self._sizes[object_id]
        return Access(hit=False, admitted=True, evicted=())


class _Ranked:
    """Admits every miss; the resident objects with the smallest keys leave first.

    A subclass is its keys. Keys of different objects differ, except for objects that are
    never used again, where the choice does not matter.
    """

    def __init__(self, sizes: Sequence[int], budget: int) -> None:
        self._sizes = sizes
        self._budget = budget
        self._keys: dict[int, Any] = {}
        # May hold outdated entries of objects whose key has changed since.
        self._heap: list[tuple[Any, int]] = []
        self._accesses = 0
        self.bytes_held = 0

    def _key(self, object_id: int, now: int, old: Any) -> Any:
        """Key after access number `now`; `old` is None when the object was not resident."""
        raise NotImplementedError

    def _admits(self, now: int) -> bool:
        """Whether the miss at access `now` is worth room at all."""
        return True

    def _replaces(self, incoming: Any, resident: Any) -> bool:
        """Whether an object with key `incoming` may evict one with key `resident`."""
        return True

    def access(self, object_id: int, protected: Collection[int] = ()) -> Access:
        now = self._accesses
        self._accesses += 1
        old = self._keys.get(object_id)
        key = self._key(object_id, now, old)
        if old is not None:
            if key != old:
                self._rank(object_id, key)
            return HIT
        size = self._sizes[object_id]
        if size > self._budget or not self._admits(now):
            return BYPASSED
        victims = self._victims(size, key, protected)
        if victims is None:
            return BYPASSED
        for victim in victims:
            del self._keys[victim]
            self.bytes_held -= self._sizes[victim]
        self._rank(object_id, key)
        self.bytes_held += size
        return Access(hit=False, admitted=True, evicted=victims)

    def _rank(self, object_id: int, key: Any) -> None:
        self._keys[object_id] = key
        heapq.heappush(self._heap, (key, object_id))
        if len(self._heap) > 2 * len(self._keys) + 64:
            self._heap = [(key, resident) for resident, key in self._keys.items()]
            heapq.heapify(self._heap)

    def _victims(
        self, size: int, incoming: Any, protected: Collection[int]
    ) -> tuple[int, ...] | None:
        """Objects taken off the heap to make room for `size` bytes, None if that may not be."""
        free = self._budget - self.bytes_held
        taken: list[tuple[Any, int]] = []
        while free < size:
            entry = heapq.heappop(self._heap)
            key, resident = entry
            if self._keys.get(resident) != key:
                continue
            taken.append(entry)
            if resident in protected or not self._replaces(incoming, key):
                for entry in taken:
                    heapq.heappush(self._heap, entry)
                return None
            free += self._sizes[resident]
        return tuple(resident for _, resident in taken)


class _LeastRecentlyUsed(_Ranked):
    def _key(self, object_id: int, now: int, old: Any) -> Any:
        return now


class _FirstInFirstOut(_Ranked):
    def _key(self, object_id: int, now: int, old: Any) -> Any:
        return now if old is None else old


class _LeastFrequentlyUsed(_Ranked):
    """Evicts the object with the fewest accesses since its admission.

    Ties go to the one whose last access is longest ago, and an evicted object's count is
    forgotten: exactly as in libcachesim 0.3.5, with no known difference.
    """

    def _key(self, object_id: int, now: int, old: Any) -> Any:
        return (1 if old is None else old[0] + 1, now)


class _Offline(_Ranked):
    """A ranked policy that is told the whole trace beforehand."""

    def __init__(self, sizes: Sequence[int], budget: int, trace: Sequence[int]) -> None:
        super().__init__(sizes, budget)
        self._trace = trace
        self._next = next_uses(trace)

    def access(self, object_id: int, protected: Collection[int] = ()) -> Access:
        now = self._accesses
        if now >= len(self._trace) or self._trace[now] != object_id:
            known = f"object {self._trace[now]}" if now < len(self._trace) else "the trace's end"
            raise UserError(
                f"access {now} is to object {object_id} where the offline policy was told "
                f"{known}: give it the whole trace (all steps) beforehand"
            )
        return super().access(object_id, protected)


class _Belady(_Offline):
    """Admits every miss and evicts the objects whose next use is farthest until it fits."""

    def _key(self, object_id: int, now: int, old: Any) -> Any:
        return -self._next[now]


class _MinBypass(_Offline):
    """Offline optimum for hits in which a miss need not be admitted.

    The incoming object is an eviction candidate like the resident ones, and the one whose
    next use is farthest goes. For objects of equal size that is Belady's MIN with bypass,
    the most hits that any policy can reach. For unequal sizes it first packs the keeps that
    hold the fewest bytes for the shortest time (`pack_intervals`), never evicts these, and
    treats the rest as above: the optimum on a cyclic trace, elsewhere a good heuristic and
    not a proven bound (`upper_bound` is one). It counts hits: costs play no part.
    """

    def __init__(self, sizes: Sequence[int], budget: int, trace: Sequence[int]) -> None:
        super().__init__(sizes, budget, trace)
        equal = len({sizes[object_id] for object_id in trace}) <= 1
        self._kept = [False] * len(trace) if equal else pack_intervals(trace, sizes, budget)

    def _key(self, object_id: int, now: int, old: Any) -> Any:
        return (self._kept[now], -self._next[now])

    def _admits(self, now: int) -> bool:
        return self._next[now] != NEVER

    def _replaces(self, incoming: Any, resident: Any) -> bool:
        return bool(resident < incoming)


def make_policy(
    name: str,
    sizes: Sequence[int],
    costs: Sequence[float] | None,
    budget: int,
    trace: Sequence[int] | None = None,
) -> Policy:
    """An empty cache ruled by one of `POLICIES`.

    - pinned: a static choice that maximises the cost saved under the budget (`knapsack`),
      weighted by how often the trace returns to an object, equally if there is no trace.
      Objects of cost 0 or less are never kept.
    - lru, fifo, lfu: admit every miss.
    - none: keeps nothing. all: keeps everything, from its first access on.
    - belady, min_bypass: offline, need `trace`.

    Args:
      sizes: bytes of each object, positive.
      costs: seconds that a hit on each object saves; None: proportional to bytes.
      budget: bytes.
      trace: the object ids that will be accessed, in order, where they are known.

    Raises:
      UserError: an unknown name, bad or mismatched numbers, `all` with too small a budget,
        an offline policy without a trace.
    """
    if name not in POLICIES:
        raise UserError(f"unknown cache policy {name!r}: choose one of {', '.join(POLICIES)}")
    byte_sizes = check_sizes(sizes)
    seconds = check_costs(costs, byte_sizes)
    limit = whole_number("cache budget", budget)
    if limit < 0:
        raise UserError(f"cache budget of {limit} bytes is negative: give 0 or more")
    if name in OFFLINE_POLICIES and trace is None:
        raise UserError(
            f"policy {name!r} must know the future: give it the number of steps, "
            "or choose an online policy"
        )
    future = list(trace) if trace is not None else []
    match name:
        case "none":
            return _Static(byte_sizes, ())
        case "all":
            if sum(byte_sizes) > limit:
                raise UserError(
                    f"policy 'all' needs {sum(byte_sizes)} bytes and the cache budget is "
                    f"{limit}: raise the budget or choose 'pinned'"
                )
            return _Static(byte_sizes, range(len(byte_sizes)))
        case "pinned":
            values = seconds
            if trace is not None:
                # The first access is a miss whatever is chosen.
                returns = Counter(future)
                values = [
                    cost * max(0, returns[object_id] - 1) for object_id, cost in enumerate(seconds)
                ]
            return _Static(byte_sizes, knapsack(values, byte_sizes, limit))
        case "lru":
            return _LeastRecentlyUsed(byte_sizes, limit)
        case "fifo":
            return _FirstInFirstOut(byte_sizes, limit)
        case "lfu":
            return _LeastFrequentlyUsed(byte_sizes, limit)
        case "belady":
            return _Belady(byte_sizes, limit, future)
        case _:
            return _MinBypass(byte_sizes, limit, future)


def whole_number(what: str, value: Any) -> int:
    """`value` as an int, or UserError if it is not a whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"{what} {value!r} is not a whole number: give an integer") from None


def check_sizes(sizes: Sequence[int]) -> list[int]:
    """Sizes as ints, or UserError if one is not a positive number of bytes."""
    checked = [whole_number(f"size of object {i}", size) for i, size in enumerate(sizes)]
    for object_id, size in enumerate(checked):
        if size <= 0:
            raise UserError(
                f"object {object_id} has a size of {size} bytes: give sizes above 0 "
                "and leave empty objects out"
            )
    return checked


def check_costs(costs: Sequence[float] | None, sizes: Sequence[int]) -> list[float]:
    """Costs as floats (None: the sizes), or UserError if they are not finite or too few."""
    if costs is None:
        return [float(size) for size in sizes]
    if len(costs) != len(sizes):
        raise UserError(
            f"{len(costs)} costs for {len(sizes)} sizes: give one of each for every object"
        )
    checked = [float(cost) for cost in costs]
    for object_id, cost in enumerate(checked):
        if not np.isfinite(cost):
            raise UserError(f"object {object_id} has a cost of {cost} seconds: give finite costs")
    return checked
