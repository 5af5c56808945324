"""Sweeps resume, survive failing points and leave one table; the points themselves are fakes."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections.config_dict import ConfigDict
from rich.console import Console

from codecjax.errors import UserError
from configs import base
from experiments import environment
from experiments.configuration import Point, resolve_points
from experiments.progress import RunProgress
from experiments.records import PointRecords, plain, read_point
from experiments.sweep import SweepRecords, flatten, pending, read_sweep, run_sweep, write_sweep

MakePoint = Callable[..., PointRecords]


def points_of(*seeds: int) -> list[Point]:
    config: ConfigDict = base.get_config()
    config.update_from_flattened_dict({"model.path": "", "model.shapes": "tiny"})
    return resolve_points(config, [{"name": f"p{s}", "run.seed": s} for s in seeds], {})


class Runner:
    """Makes fake records and remembers for which points."""

    def __init__(self, make_point: MakePoint, failing: dict[str, Exception] | None = None) -> None:
        self.make_point = make_point
        self.failing = failing or {}
        self.ran: list[str] = []

    def __call__(self, point: Point, progress: RunProgress) -> PointRecords:
        self.ran.append(point.name)
        if point.name in self.failing:
            raise self.failing[point.name]
        made = self.make_point(point.name)
        here = {**made.environment, "device": environment.device_name()}
        return PointRecords(plain(point.config.to_dict()), here, made.steps, made.summary)


@pytest.fixture
def progress() -> RunProgress:
    return RunProgress(Console(file=io.StringIO()))


def test_finished_points_are_not_run_again(
    tmp_path: Path, make_point: MakePoint, progress: RunProgress
) -> None:
    runner = Runner(make_point)
    first = run_sweep(points_of(0, 1), tmp_path, runner, progress)
    assert [point.name for point in pending(points_of(0, 1, 2), tmp_path)] == ["p2"]
    again = run_sweep(points_of(0, 1, 2), tmp_path, runner, progress)
    assert runner.ran == ["p0", "p1", "p2"]
    assert again[:2] == first


def test_a_changed_point_is_run_again(
    tmp_path: Path, make_point: MakePoint, progress: RunProgress
) -> None:
    runner = Runner(make_point)
    run_sweep(points_of(0), tmp_path, runner, progress)
    changed = points_of(0)
    changed[0].config.run.new_tokens = 5
    run_sweep(changed, tmp_path, runner, progress)
    assert runner.ran == ["p0", "p0"]


def test_an_interruption_loses_only_the_point_in_flight(
    tmp_path: Path, make_point: MakePoint, progress: RunProgress
) -> None:
    interrupted = Runner(make_point)
    interrupted.failing = {"p1": KeyboardInterrupt()}  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        run_sweep(points_of(0, 1, 2), tmp_path, interrupted, progress)
    assert read_point(tmp_path / "points" / "p0") is not None
    assert read_point(tmp_path / "points" / "p1") is None
    runner = Runner(make_point)
    run_sweep(points_of(0, 1, 2), tmp_path, runner, progress)
    assert runner.ran == ["p1", "p2"]


def test_a_failing_point_is_recorded_and_the_others_run(
    tmp_path: Path, make_point: MakePoint, progress: RunProgress
) -> None:
    runner = Runner(make_point, {"p1": MemoryError("out of\nmemory")})
    done = run_sweep(points_of(0, 1, 2), tmp_path, runner, progress)
    assert [each.finished for each in done] == [True, False, True]
    recorded = read_point(tmp_path / "points" / "p1")
    assert recorded is not None
    assert recorded.summary["error"] == "out of memory"
    assert "MemoryError" in recorded.summary["traceback"]
    # What failed is tried again next time.
    better = Runner(make_point)
    assert all(each.finished for each in run_sweep(points_of(0, 1, 2), tmp_path, better, progress))
    assert better.ran == ["p1"]


def test_one_mistake_in_every_point_is_the_users(
    tmp_path: Path, make_point: MakePoint, progress: RunProgress
) -> None:
    failing: dict[str, Exception] = {f"p{i}": UserError("the file is damaged") for i in range(2)}
    with pytest.raises(UserError, match="the file is damaged"):
        run_sweep(points_of(0, 1), tmp_path, Runner(make_point, failing), progress)


def test_points_of_another_device_are_not_mixed_in(
    tmp_path: Path,
    make_point: MakePoint,
    progress: RunProgress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_sweep(points_of(0), tmp_path, Runner(make_point), progress)
    monkeypatch.setattr(environment, "device_name", lambda: "another device")
    with pytest.raises(UserError, match="another --workdir"):
        run_sweep(points_of(0), tmp_path, Runner(make_point), progress)


def test_the_table_has_a_row_for_every_point_and_reads_back(
    tmp_path: Path, make_point: MakePoint, progress: RunProgress
) -> None:
    runner = Runner(make_point, {"p1": ValueError("broken")})
    points = points_of(0, 1)
    records = run_sweep(points, tmp_path, runner, progress)
    folders = [point.folder for point in points]
    sweep = SweepRecords("n", "t", "a", False, "python x", list(zip(folders, records, strict=True)))
    write_sweep(tmp_path, sweep)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert float(rows[0]["time.tokens_per_second"]) == 100.0
    assert rows[0]["config.run.seed"] == "0"
    assert rows[1]["error"] == "broken"
    assert not any("traceback" in column for column in rows[0])
    assert read_sweep(tmp_path) == sweep


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sweep\.json"):
        read_sweep(tmp_path)


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": None}) == {"a.b.c": 1, "a.d": [], "e": None}
