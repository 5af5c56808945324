"""Bounds: above every policy, and equal to the optimum where one is known."""

import random

import pytest

from codecjax.cache import POLICIES, cyclic_trace, hit_bounds, simulate, upper_bound, zipf_trace


def random_case(seed: int) -> tuple[list[int], list[int], list[float], int]:
    draw = random.Random(seed)
    objects = draw.randint(2, 20)
    sizes = [draw.randint(1, 20) for _ in range(objects)]
    costs = [draw.uniform(-0.1, 1) for _ in range(objects)]
    kind = seed % 3
    if kind == 0:
        trace = cyclic_trace(objects, 6).tolist()
    elif kind == 1:
        trace = draw.choices(range(objects), k=200)
    else:
        trace = draw.choices(range(objects), [1 / (i + 1) for i in range(objects)], k=200)
    return trace, sizes, costs, draw.randint(0, sum(sizes))


@pytest.mark.parametrize("seed", range(30))
def test_no_policy_exceeds_the_bounds(seed: int) -> None:
    trace, sizes, costs, budget = random_case(seed)
    limit = hit_bounds(trace, sizes, costs, budget)
    for policy in POLICIES:
        if policy == "all" and sum(sizes) > budget:
            continue
        run = simulate(policy, trace, sizes, costs, budget)
        assert run.hits <= limit.hits
        assert run.byte_hits <= limit.byte_hits
        assert run.cost_hits <= limit.cost_hits + 1e-9


@pytest.mark.parametrize("seed", range(0, 30, 3))
def test_bounds_are_reached_on_cyclic_traces(seed: int) -> None:
    trace, sizes, costs, budget = random_case(seed)
    limit = hit_bounds(trace, sizes, costs, budget)
    ones = [1.0] * len(sizes)
    assert simulate("pinned", trace, sizes, costs, budget).cost_hits == pytest.approx(
        limit.cost_hits
    )
    assert simulate("pinned", trace, sizes, None, budget).byte_hits == limit.byte_hits
    assert simulate("pinned", trace, sizes, ones, budget).hits == limit.hits
    assert simulate("min_bypass", trace, sizes, costs, budget).hits == limit.hits


def test_equal_objects_have_the_exact_bound() -> None:
    limit = hit_bounds(cyclic_trace(155, 50), [8] * 155, [0.25] * 155, 20 * 8)
    assert limit.hits == 980
    assert limit.byte_hits == 980 * 8
    assert limit.cost_hits == pytest.approx(245.0)
    trace = zipf_trace(layers=4, experts=16, top=2, steps=100)
    limit = hit_bounds(trace, [8] * 64, [0.25] * 64, 16 * 8)
    best = simulate("min_bypass", trace, [8] * 64, None, 16 * 8).hits
    assert (limit.hits, limit.cost_hits) == (best, best * 0.25)
    # The relaxations alone are close to the optimum, and not below it.
    assert best <= upper_bound(trace.tolist(), [8] * 64, [1.0] * 64, 16 * 8) <= 1.15 * best
