"""Policies against exact numbers and exhaustive search."""

import itertools
import random

import pytest

from codecjax.cache import POLICIES, cyclic_trace, simulate, zipf_trace

LAYERS, STEPS, FITTING, SIZE = 155, 50, 20, 1 << 20


@pytest.mark.parametrize(
    ("policy", "fitting", "hits"),
    [
        ("lru", FITTING, 0),
        ("fifo", FITTING, 0),
        ("lfu", FITTING, 0),
        ("belady", FITTING, 950),
        ("pinned", FITTING, 980),
        ("min_bypass", FITTING, 980),
        ("none", FITTING, 0),
        ("none", LAYERS, 0),
        # Everything is resident after the first step, in which every access is a miss.
        *[(policy, LAYERS, LAYERS * (STEPS - 1)) for policy in POLICIES if policy != "none"],
    ],
)
@pytest.mark.parametrize("slack", [0, SIZE - 1])
def test_equal_layers_in_a_cycle(policy: str, fitting: int, hits: int, slack: int) -> None:
    run = simulate(
        policy, cyclic_trace(LAYERS, STEPS), [SIZE] * LAYERS, None, fitting * SIZE + slack
    )
    assert (run.accesses, run.hits) == (7750, hits)
    assert run.byte_hits == run.cost_hits == hits * SIZE
    assert run.peak_bytes == (0 if policy == "none" else fitting * SIZE)


def test_pinned_takes_the_first_of_equal_layers() -> None:
    run = simulate("pinned", cyclic_trace(LAYERS, 2), [SIZE] * LAYERS, [0.1] * LAYERS, 20 * SIZE)
    assert [m.object_id for m in run.movements if m.admitted] == list(range(20))


@pytest.mark.parametrize(
    ("policy", "percent"), [("lru", 52.9), ("fifo", 46.2), ("lfu", 60.5), ("belady", 77.5)]
)
def test_mixture_of_experts_hit_rates(policy: str, percent: float) -> None:
    """The figures that libcachesim gave for this trace, after a quarter of it as warm-up."""
    trace = zipf_trace(layers=24, experts=64, top=4, steps=200, seed=0)
    run = simulate(policy, trace, [SIZE] * 1536, None, 1536 // 4 * SIZE)
    counted = run.movements[len(trace) // 4 :]
    assert round(100 * sum(m.hit for m in counted) / len(counted), 1) == percent


def most_hits(trace: list[int], sizes: list[int], budget: int, bypass: bool) -> int:
    """The most hits of all ways to choose what stays after each access, by exhaustion."""
    states = {frozenset[int](): 0}
    for accessed in trace:
        following: dict[frozenset[int], int] = {}
        for resident, hits in states.items():
            hits += accessed in resident
            candidates = resident | {accessed}
            for count in range(len(candidates) + 1):
                for stays in map(frozenset, itertools.combinations(candidates, count)):
                    fits = sum(sizes[o] for o in stays) <= budget
                    forced = accessed in stays or bypass or sizes[accessed] > budget
                    if fits and forced:
                        following[stays] = max(following.get(stays, 0), hits)
        states = following
    return max(states.values())


@pytest.mark.parametrize("seed", range(25))
def test_offline_policies_are_optimal_for_equal_sizes(seed: int) -> None:
    draw = random.Random(seed)
    objects = draw.randint(2, 6)
    trace = draw.choices(range(objects), [1 / (i + 1) for i in range(objects)], k=25)
    budget = draw.randint(0, objects) * 3 + draw.randint(0, 2)
    costs = [draw.random() for _ in range(objects)]
    for policy, bypass in (("belady", False), ("min_bypass", True)):
        run = simulate(policy, trace, [3] * objects, costs, budget)
        assert run.hits == most_hits(trace, [3] * objects, budget, bypass)


@pytest.mark.parametrize("seed", range(20))
def test_min_bypass_is_near_the_optimum_for_unequal_sizes(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 9) for _ in range(6)]
    trace = draw.choices(range(6), k=25)
    budget = draw.randint(3, 20)
    reached = simulate("min_bypass", trace, sizes, None, budget).hits
    optimum = most_hits(trace, sizes, budget, bypass=True)
    assert optimum - 2 <= reached <= optimum


@pytest.mark.parametrize("seed", range(5))
def test_no_admit_always_policy_beats_belady(seed: int) -> None:
    trace = zipf_trace(layers=3, experts=12, top=2, steps=80, seed=seed)
    hits = {
        policy: simulate(policy, trace, [7] * 36, None, 10 * 7).hits
        for policy in ("lru", "fifo", "lfu", "belady", "min_bypass", "pinned")
    }
    assert hits["belady"] >= max(hits["lru"], hits["fifo"], hits["lfu"])
    assert hits["min_bypass"] >= max(hits.values())


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "all"])
def test_an_object_larger_than_the_budget_moves_nothing(policy: str) -> None:
    trace = [0, 1, 0, 2, 0, 1, 0, 2, 0, 1]
    run = simulate(policy, trace, [4, 6, 11], [1.0, 1.0, 9.0], 10)
    assert all(not m.hit and not m.admitted for m in run.movements if m.object_id == 2)
    assert run.hits == (0 if policy == "none" else 6)
    assert all(not m.evicted for m in run.movements)


def test_pinned_keeps_nothing_where_decoding_is_free() -> None:
    run = simulate("pinned", cyclic_trace(3, 4), [1, 1, 1], [0.0, -1.0, 2.0], 3)
    assert {m.object_id for m in run.movements if m.hit} == {2}


def test_pinned_weighs_costs_by_returns() -> None:
    # Object 0 is dearer per access, object 1 saves more over the trace; 2 never returns.
    run = simulate("pinned", [0, 1, 2, 1, 1, 0, 1], [5, 5, 5], [2.0, 1.0, 99.0], 5)
    assert (run.hits, run.cost_hits) == (3, 3.0)


def test_min_bypass_does_not_admit_what_never_returns() -> None:
    run = simulate("min_bypass", [0, 1, 0, 2], [1, 1, 1], None, 3)
    assert [m.admitted for m in run.movements] == [True, False, False, False]
