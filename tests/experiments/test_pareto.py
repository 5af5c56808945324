"""Pareto fronts, against the definition."""

from hypothesis import given
from hypothesis import strategies as st

from experiments.pareto import on_front

FEW = st.integers(0, 4).map(float)


def test_what_is_beaten_in_one_coordinate_and_tied_in_the_other_is_off() -> None:
    points = [(1.0, 5.0), (2.0, 5.0), (2.0, 4.0), (2.0, 4.5), (3.0, 4.0)]
    assert on_front(points) == [True, False, True, False, False]


def test_equal_points_stand_together_and_fall_together() -> None:
    assert on_front([(1.0, 2.0), (2.0, 1.0), (1.0, 2.0)]) == [True, True, True]
    assert on_front([(1.0, 2.0), (0.0, 1.0), (1.0, 2.0)]) == [False, True, False]


def test_one_point_and_none() -> None:
    assert on_front([(1.0, 2.0)]) == [True]
    assert on_front([]) == []


@given(st.lists(st.tuples(FEW, FEW), min_size=1))
def test_a_front_is_a_staircase_that_covers_every_point(points: list[tuple[float, float]]) -> None:
    marks = on_front(points)
    front = sorted({point for point, mark in zip(points, marks, strict=True) if mark})
    seconds = [second for _, second in front]
    assert len({first for first, _ in front}) == len(front)
    assert seconds == sorted(set(seconds), reverse=True)
    for first, second in points:
        assert any(a <= first and b <= second for a, b in front)
