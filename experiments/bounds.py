"""What is the best that could be: offline optima for hits, a floor for time."""

import dataclasses
from collections.abc import Sequence

from codecjax.cache import CacheObject, cyclic_trace, hit_bounds


@dataclasses.dataclass(frozen=True)
class HitRates:
    """Shares from 0 to 1, over all steps; None where there is nothing to hit.

    Attributes:
      object: of accesses to cached objects that were hits.
      byte: of decoded bytes accessed that were found resident.
      cost: of the decode cost of all accesses that hits saved.
    """

    object: float | None
    byte: float | None
    cost: float | None


def hit_rates(
    hits: float, byte_hits: float, cost_hits: float, accesses: int, byte_count: int, cost: float
) -> HitRates:
    """Rates from sums of hits and of accesses."""
    return HitRates(
        object=hits / accesses if accesses else None,
        byte=byte_hits / byte_count if byte_count else None,
        cost=cost_hits / cost if cost > 0 else None,
    )


def step_cost(objects: Sequence[CacheObject]) -> float:
    """The decode cost of one step that finds nothing resident.

    An object that is read faster decoded from its codec than from pages costs nothing here:
    there is nothing that a hit could save.
    """
    return sum(max(0.0, item.cost) for item in objects)


def offline_optimum(
    objects: Sequence[CacheObject], page_bytes: int, steps: int, budget_bytes: int
) -> HitRates:
    """The highest rates that any policy can reach over `steps` steps, each for itself.

    A dense model touches its objects in the same order every step. On such a trace the
    bounds of `codecjax.cache.hit_bounds` are optima: some policy that knows the future reaches
    them.

    Args:
      objects: what the cache holds; their tiles and costs count.
      page_bytes: bytes of one decoded tile.
      steps: model steps, the first of which finds the cache empty.
      budget_bytes: room for decoded tiles.
    """
    sizes = [len(item.tiles) * page_bytes for item in objects]
    best = hit_bounds(
        cyclic_trace(len(objects), steps), sizes, [item.cost for item in objects], budget_bytes
    )
    return hit_rates(
        best.hits,
        best.byte_hits,
        best.cost_hits,
        accesses=steps * len(objects),
        byte_count=steps * sum(sizes),
        cost=steps * step_cost(objects),
    )
