"""What is seen of a run, on a terminal and without one."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from experiments import progress
from experiments.progress import RunProgress, step_line
from experiments.records import PointRecords


def test_a_step_in_words(make_point: Callable[..., PointRecords]) -> None:
    first, second = make_point("p", held=20).steps[:2]
    assert step_line(first) == (
        "200.00 ms, 0 hits, 155 misses, 15500 tiles decoded, 2 us/tile, pages 2000/2000"
    )
    assert "20 hits, 135 misses, 13500 tiles decoded" in step_line(second)
    assert "no tile to decode" in step_line({**second, "decode_seconds_per_tile": None})


def test_without_a_terminal_first_last_and_a_few_steps_are_printed(
    make_point: Callable[..., PointRecords], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(float(second) for second in range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    steps = make_point("p", steps=9).steps
    with RunProgress(Console(file=stream, width=60)) as shown:
        shown.begin("one [point]", len(steps))
        shown.note("compiles")
        for step in steps:
            shown.step(step)
        shown.end("done")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[one [point]] compiles"
    assert [line.split(":")[0] for line in lines[1:-1]] == [
        "[one [point]] step 1/9",
        "[one [point]] step 6/9",
        "[one [point]] step 9/9",
    ]
    assert lines[-1] == "[one [point]] done"


def test_a_terminal_shows_a_bar_per_point(make_point: Callable[..., PointRecords]) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=160)
    with RunProgress(console) as shown:
        for name in ("first point", "second point"):
            shown.begin(name, 12)
            for step in make_point(name).steps:
                shown.step(step)
            shown.end("done")
    last_frame = stream.getvalue().rsplit("first point", 1)[1]
    assert "second point" in last_frame
    assert last_frame.count("12/12") == 2
