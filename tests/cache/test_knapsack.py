"""The knapsack against all subsets, and where it must approximate."""

import itertools
import random

import pytest

from codecjax.cache import knapsack as module
from codecjax.cache.knapsack import knapsack, knapsack_bound


def best_value(values: list[float], sizes: list[int], budget: int) -> float:
    return max(
        sum(values[i] for i in subset)
        for count in range(len(values) + 1)
        for subset in itertools.combinations(range(len(values)), count)
        if sum(sizes[i] for i in subset) <= budget
    )


def random_case(seed: int) -> tuple[list[float], list[int], int]:
    draw = random.Random(seed)
    count = draw.randint(1, 10)
    unit = draw.choice([1, 3, 131072])
    sizes = [unit * draw.randint(1, 12) for _ in range(count)]
    values = [draw.uniform(-0.3, 1) for _ in range(count)]
    return values, sizes, draw.randint(0, sum(sizes) + unit)


@pytest.mark.parametrize("seed", range(40))
def test_exact_against_all_subsets(seed: int) -> None:
    values, sizes, budget = random_case(seed)
    chosen = knapsack(values, sizes, budget)
    assert sum(sizes[i] for i in chosen) <= budget
    assert all(values[i] > 0 for i in chosen)
    assert sum(values[i] for i in chosen) == pytest.approx(best_value(values, sizes, budget))
    assert knapsack_bound(values, sizes, budget) == pytest.approx(best_value(values, sizes, budget))


@pytest.mark.parametrize("states", [1, 30, 200])
@pytest.mark.parametrize("seed", range(40))
def test_approximate_is_feasible_and_good(
    states: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STATES", states)
    values, sizes, budget = random_case(seed)
    chosen = knapsack(values, sizes, budget)
    assert sum(sizes[i] for i in chosen) <= budget
    reached, optimum = sum(values[i] for i in chosen), best_value(values, sizes, budget)
    # Greedy or the best single object reaches half the optimum, whatever the case.
    assert reached >= optimum / 2
    assert knapsack_bound(values, sizes, budget) >= optimum - 1e-9


def test_many_objects_of_bytes_without_a_common_unit() -> None:
    draw = random.Random(0)
    sizes = [draw.randint(10**8, 10**9) * 2 + 1 for _ in range(155)]
    values = [size * draw.uniform(0.5, 2) for size in sizes]
    budget = sum(sizes) // 7
    chosen = knapsack(values, sizes, budget)
    assert sum(sizes[i] for i in chosen) <= budget
    assert sum(values[i] for i in chosen) >= 0.999 * knapsack_bound(values, sizes, budget)


def test_equal_objects_beyond_the_exact_limit_are_still_exact() -> None:
    values = [float(i % 1000) + 1 for i in range(15_784)]
    chosen = knapsack(values, [131072] * 15_784, 2036 * 131072)
    assert sum(values[i] for i in chosen) == sum(sorted(values)[-2036:])


@pytest.mark.parametrize(
    ("values", "sizes", "budget", "chosen"),
    [
        ([0.1] * 5, [4] * 5, 12, (0, 1, 2)),
        ([1.0, 2.0, 1.0, 2.0], [1, 1, 1, 1], 3, (0, 1, 3)),
        # 0.1 + 0.2 and 0.3 are equal on paper.
        ([0.1, 0.2, 0.3], [1, 2, 3], 3, (0, 1)),
        ([0.3, 0.2, 0.1], [3, 2, 1], 3, (0,)),
        ([0.0, -1.0], [1, 1], 2, ()),
        ([], [], 5, ()),
        ([1.0], [2], 1, ()),
    ],
)
def test_ties_go_to_earlier_objects(
    values: list[float], sizes: list[int], budget: int, chosen: tuple[int, ...]
) -> None:
    assert knapsack(values, sizes, budget) == chosen


def test_greedy_does_not_lose_a_single_large_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STATES", 1)
    assert knapsack([1.1, 100.0], [1, 100], 100) == (1,)
