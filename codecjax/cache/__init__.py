"""The weight cache on the host: which decoded tiles stay in device memory, and what that saves."""

from codecjax.cache.bounds import Bounds, hit_bounds, upper_bound
from codecjax.cache.controller import Controller, Plan
from codecjax.cache.objects import (
    CacheObject,
    budget_from_fraction,
    pool_pages,
    split_objects,
)
from codecjax.cache.planner import with_measured_costs
from codecjax.cache.policies import OFFLINE_POLICIES, POLICIES
from codecjax.cache.simulate import Movement, Simulation, simulate
from codecjax.cache.trace import cyclic_trace, zipf_trace

__all__ = [
    "OFFLINE_POLICIES",
    "POLICIES",
    "Bounds",
    "CacheObject",
    "Controller",
    "Movement",
    "Plan",
    "Simulation",
    "budget_from_fraction",
    "cyclic_trace",
    "hit_bounds",
    "pool_pages",
    "simulate",
    "split_objects",
    "upper_bound",
    "with_measured_costs",
    "zipf_trace",
]
