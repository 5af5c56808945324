"""Pareto fronts: the points that no other point beats."""

from collections.abc import Sequence


def on_front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Which points are on the front, in their order.

    Args:
      points: coordinates, all to be small; negate one that should be large.

    Returns:
      False where another point is at most as large in every coordinate and smaller in one.
      Equal points do not beat one another, so all or none of them are on the front.
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
