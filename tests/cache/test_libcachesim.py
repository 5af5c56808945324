"""Access by access agreement with libcachesim, an independent simulator; ties break alike."""

import libcachesim
import numpy as np
import pytest

from codecjax.cache import simulate

ORACLES = {
    "lru": libcachesim.LRU,
    "fifo": libcachesim.FIFO,
    "lfu": libcachesim.LFU,
    "belady": libcachesim.Belady,
}


def random_case(seed: int) -> tuple[list[int], list[int], int]:
    """(trace, sizes, budget): even seeds have equal sizes, every other pair is Zipf."""
    random = np.random.default_rng(seed)
    objects = int(random.integers(5, 60))
    equal, zipf = seed % 2 == 0, seed % 4 < 2
    sizes = [10] * objects if equal else random.integers(1, 40, objects).tolist()
    weights = np.arange(1, objects + 1, dtype=float) ** -1.0 if zipf else np.ones(objects)
    trace = random.choice(objects, 3000, p=weights / weights.sum()).tolist()
    budget = int(sum(sizes) * random.uniform(0.05, 0.7))
    if seed % 10 == 3:
        budget = int(0.8 * max(sizes))  # some objects never fit
    return trace, sizes, budget


def libcachesim_hits(policy: str, trace: list[int], sizes: list[int], budget: int) -> list[bool]:
    never = np.iinfo(np.int64).max
    following: dict[int, int] = {}
    next_access = [never] * len(trace)
    for position in reversed(range(len(trace))):
        next_access[position] = following.get(trace[position], never)
        following[trace[position]] = position
    cache = ORACLES[policy](cache_size=budget, hashpower=12)
    return [
        bool(
            cache.get(
                libcachesim.Request(
                    obj_id=accessed + 1,
                    obj_size=sizes[accessed],
                    clock_time=position,
                    next_access_vtime=next_access[position],
                )
            )
        )
        for position, accessed in enumerate(trace)
    ]


@pytest.mark.parametrize("policy", ORACLES)
@pytest.mark.parametrize("seed", range(20))
def test_hits_equal_libcachesim(policy: str, seed: int) -> None:
    trace, sizes, budget = random_case(seed)
    run = simulate(policy, trace, sizes, None, budget)
    expected = libcachesim_hits(policy, trace, sizes, budget)
    assert run.hits == sum(expected)
    assert [movement.hit for movement in run.movements] == expected


def test_the_cases_are_not_trivial() -> None:
    cases = [random_case(seed) for seed in range(20)]
    rates = [simulate("lru", *case[:2], None, case[2]).object_hit_rate for case in cases]
    assert min(rates) < 0.3 < 0.7 < max(rates)
    assert any(max(sizes) > budget for _, sizes, budget in cases)
