"""Costs from measured seconds, and budgets in pages."""

import numpy as np
import pytest

from codecjax.cache import (
    CacheObject,
    Controller,
    budget_from_fraction,
    pool_pages,
    split_objects,
    with_measured_costs,
)
from codecjax.errors import UserError

PAGE = 131072


def objects_of(*tiles: int) -> list[CacheObject]:
    starts = np.cumsum([0, *tiles])
    return [
        CacheObject(f"m{i}", np.arange(starts[i], starts[i + 1], dtype=np.int32), 1.0)
        for i in range(len(tiles))
    ]


def test_measured_costs_decide_what_is_pinned() -> None:
    objects = with_measured_costs(
        objects_of(2, 2, 2),
        resident_seconds={"m0": 3e-5, "m1": 2e-5, "m2": 1e-5},
        decoded_seconds={"m0": 2e-5, "m1": 5e-5, "m2": 2e-5},
    )
    assert [item.cost for item in objects] == pytest.approx([-1e-5, 3e-5, 1e-5])
    controller = Controller("pinned", objects, 6, PAGE, 6)
    controller.plan()
    plan = controller.plan()
    assert plan.pages_held == 4
    assert (plan.page_table[:2] == -1).all()
    assert plan.cost_hits == pytest.approx(4e-5)


@pytest.mark.parametrize("seconds", [{}, {"m0": float("inf")}, {"m0": -1.0}])
def test_a_missing_time_is_named(seconds: dict[str, float]) -> None:
    with pytest.raises(UserError, match="decoded time of 'm0'"):
        with_measured_costs(objects_of(1), {"m0": 1.0}, seconds)
    with pytest.raises(UserError, match="resident time of 'm0'"):
        with_measured_costs(objects_of(1), seconds, {"m0": 1.0})


@pytest.mark.parametrize(
    ("budget", "pages"), [(0, 0), (PAGE, 1), (2 * PAGE - 1, 1), (20 * PAGE, 20)]
)
def test_pool_pages(budget: int, pages: int) -> None:
    assert pool_pages(budget, PAGE) == pages


@pytest.mark.parametrize(
    ("budget", "words"), [(-5, ["-5", "negative"]), (PAGE - 1, ["131071", "131072", "at least"])]
)
def test_impossible_pools(budget: int, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        pool_pages(budget, PAGE)
    assert all(word in str(error.value) for word in words)


def test_budget_from_fraction_rounds_down_to_whole_pages() -> None:
    tinyllama = objects_of(*[64, 8, 8, 64, 176, 176, 176] * 22, 1000)
    assert sum(len(item.tiles) for item in tinyllama) == 15_784
    assert budget_from_fraction(20 / 155, tinyllama, PAGE) == 2036 * PAGE  # of 2036.6
    assert budget_from_fraction(1.0, tinyllama, PAGE) == 15_784 * PAGE
    assert budget_from_fraction(0.0, tinyllama, PAGE) == 0
    for fitting in range(1, 156):
        assert budget_from_fraction(fitting / 155, objects_of(*[7] * 155), PAGE) == (
            7 * fitting * PAGE
        )
    assert budget_from_fraction(0.29, objects_of(100), PAGE) == 29 * PAGE
    assert budget_from_fraction(0.5, [], PAGE) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan")])
def test_fractions_outside_the_range(fraction: float) -> None:
    with pytest.raises(UserError, match="outside"):
        budget_from_fraction(fraction, objects_of(4), PAGE)


def test_a_fraction_below_one_page() -> None:
    with pytest.raises(UserError, match=r"0\.2 of 4 tiles .* at least 0\.25"):
        budget_from_fraction(0.2, objects_of(4), PAGE)


def test_split_objects() -> None:
    whole = objects_of(5, 2, 0)
    groups = split_objects(whole, 2)
    assert [group.name for group in groups] == ["m0[0:2]", "m0[2:4]", "m0[4:5]", "m1", "m2"]
    assert [group.matrix for group in groups] == ["m0", "m0", "m0", None, None]
    assert [group.cost for group in groups] == pytest.approx([0.4, 0.4, 0.2, 1.0, 1.0])
    np.testing.assert_array_equal(np.concatenate([g.tiles for g in groups]), np.arange(7))
    with pytest.raises(UserError, match="0 tiles"):
        split_objects(whole, 0)
