"""What a cache policy does with a trace of accesses, without a model."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codecjax.cache.policies import check_costs, check_sizes, make_policy
from codecjax.errors import UserError


class Movement(NamedTuple):
    """What one access moved.

    Attributes:
      object_id: the object accessed.
      hit: whether it was resident.
      admitted: whether it was missed and is kept from now on.
      evicted: the objects that made room for it.
      bytes_in, bytes_out: bytes admitted and evicted.
    """

    object_id: int
    hit: bool
    admitted: bool
    evicted: tuple[int, ...]
    bytes_in: int
    bytes_out: int


@dataclasses.dataclass(frozen=True)
class Simulation:
    """Sums over all accesses of a trace.

    Attributes:
      accesses, hits: counts.
      bytes, byte_hits: bytes of the objects accessed and of those that were hit.
      cost, cost_hits: seconds that decoding every access would take, and those saved by hits.
      peak_bytes: the most bytes held at once; only kept objects count, no scratch.
      movements: one per access.
    """

    accesses: int
    hits: int
    bytes: int
    byte_hits: int
    cost: float
    cost_hits: float
    peak_bytes: int
    movements: tuple[Movement, ...]

    @property
    def object_hit_rate(self) -> float:
        """hits / accesses, 0 for an empty trace."""
        return self.hits / self.accesses if self.accesses else 0.0

    @property
    def byte_hit_rate(self) -> float:
        """byte_hits / bytes, 0 for an empty trace."""
        return self.byte_hits / self.bytes if self.bytes else 0.0

    @property
    def cost_hit_rate(self) -> float:
        """cost_hits / cost, 0 where nothing costs anything."""
        return self.cost_hits / self.cost if self.cost else 0.0


def simulate(
    policy: str,
    trace: Sequence[int] | np.ndarray,
    sizes: Sequence[int] | np.ndarray,
    costs: Sequence[float] | np.ndarray | None,
    budget: int,
) -> Simulation:
    """Runs a policy over a trace, starting with an empty cache.

    Args:
      policy: one of `POLICIES`.
      trace: object ids 0..n-1 in order of access.
      sizes: bytes of each of the n objects.
      costs: seconds that a hit on each object saves; None: cost is counted in bytes.
      budget: bytes.

    Raises:
      UserError: an unknown policy, an id out of range, a size of 0 or less, as many costs as
        there are not sizes, a negative budget, or one too small for policy `all`.
    """
    byte_sizes = check_sizes([*sizes])
    seconds = check_costs(None if costs is None else [*costs], byte_sizes)
    ids = _check_trace(trace, len(byte_sizes))
    cache = make_policy(policy, byte_sizes, seconds, budget, ids)
    hits = byte_hits = peak = 0
    cost_hits = 0.0
    movements = []
    for object_id in ids:
        hit, admitted, evicted = cache.access(object_id)
        if hit:
            hits += 1
            byte_hits += byte_sizes[object_id]
            cost_hits += seconds[object_id]
        peak = max(peak, cache.bytes_held)
        movements.append(
            Movement(
                object_id,
                hit,
                admitted,
                evicted,
                byte_sizes[object_id] if admitted else 0,
                sum(byte_sizes[victim] for victim in evicted),
            )
        )
    return Simulation(
        accesses=len(ids),
        hits=hits,
        bytes=sum(byte_sizes[object_id] for object_id in ids),
        byte_hits=byte_hits,
        cost=sum(seconds[object_id] for object_id in ids),
        cost_hits=cost_hits,
        peak_bytes=peak,
        movements=tuple(movements),
    )


def _check_trace(trace: Sequence[int] | np.ndarray, objects: int) -> list[int]:
    ids = np.asarray(trace)
    if not ids.size:
        return []
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UserError(
            f"the trace is an array of {ids.dtype} with shape {ids.shape}: "
            "give a flat sequence of whole object ids"
        )
    for extreme in (int(ids.min()), int(ids.max())):
        if not 0 <= extreme < objects:
            raise UserError(
                f"the trace accesses object {extreme} and sizes are given for {objects} objects: "
                f"ids run from 0 to {objects - 1}"
            )
    return [int(object_id) for object_id in ids]
