"""Costs for the cache policies, from measured times."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from codecjax.cache.objects import CacheObject
from codecjax.errors import UserError


def with_measured_costs(
    objects: Sequence[CacheObject],
    resident_seconds: Mapping[str, float],
    decoded_seconds: Mapping[str, float],
) -> tuple[CacheObject, ...]:
    """Objects whose cost is what keeping them saves per step: decoded minus resident seconds.

    A negative cost says that decoding is faster than reading the decoded pages; `pinned`
    then never keeps the object.

    Args:
      objects: cache objects; their own costs are ignored.
      resident_seconds: by object name, seconds of its use when it is read from pages.
      decoded_seconds: by object name, seconds of its use when it is decoded.

    Raises:
      UserError: a time is missing, negative or not finite.
    """
    for state, seconds in (("resident", resident_seconds), ("decoded", decoded_seconds)):
        for item in objects:
            measured = seconds.get(item.name, math.nan)
            if not (math.isfinite(measured) and measured >= 0):
                raise UserError(
                    f"the {state} time of {item.name!r} is {measured} seconds: "
                    "calibrate every object"
                )
    return tuple(
        dataclasses.replace(
            item, cost=float(decoded_seconds[item.name] - resident_seconds[item.name])
        )
        for item in objects
    )
