"""Figures as people read them."""

import pytest

from experiments import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.012345, "0.0123"),
        (1.0, "1.00"),
        (11.62, "11.6"),
        (999.4, "999"),
        (15784, "15,784"),
        (3.9e12, "3.90e+12"),
        (2.5e-7, "2.50e-07"),
        (-3.25, "-3.25"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert formats.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (61.0, "61.0 s"),
        (0.0123, "12.3 ms"),
        (2e-6, "2.00 us"),
        (5e-9, "5.00 ns"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert formats.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (12, "12.0 B"), (131072, "131 kB"), (2.2e9, "2.20 GB"), (3e12, "3.00 TB")],
)
def test_size(value: float | None, text: str) -> None:
    assert formats.size(value) == text


def test_shares_factors_and_answers() -> None:
    assert formats.percent(20 / 155) == "12.9 %"
    assert formats.percent(None) == "-"
    assert formats.factor(0.9) == "0.900x"
    assert [formats.yes_no(value) for value in (True, False, None)] == ["yes", "NO", "-"]
