"""Runs the points of a sweep: resumes, survives a failing point, leaves a table of all."""

import csv
import dataclasses
import io
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from codecjax.errors import UserError
from experiments import environment
from experiments.cli import one_sentence
from experiments.configuration import Point
from experiments.exactness import is_inexact
from experiments.progress import RunProgress
from experiments.records import (
    FAILED,
    PointRecords,
    plain,
    read_json,
    read_point,
    same_config,
    write_json,
    write_point,
    write_text,
)

RunPoint = Callable[[Point, RunProgress], PointRecords]


@dataclasses.dataclass(frozen=True)
class SweepRecords:
    """A sweep and its points, in order.

    Attributes:
      name: of the config file.
      title, about: what the report says about the experiment.
      original_notes: whether the report answers the original notes.
      command: the command that ran it.
      points: (folder name, records) of each.
    """

    name: str
    title: str
    about: str
    original_notes: bool
    command: str
    points: list[tuple[str, PointRecords]]


def run_sweep(
    points: Sequence[Point], workdir: Path, run_point: RunPoint, progress: RunProgress
) -> list[PointRecords]:
    """Runs every point that isn't done yet and records it in `workdir/points/<folder>`.

    A point that fails is recorded with its error, and the others still run. What was
    finished before an interruption stays.

    Raises:
      UserError: the points in `workdir` were recorded on another device, or every point
        failed by the same mistake in its input.
    """
    earlier = {point.folder: read_point(workdir / "points" / point.folder) for point in points}
    _check_device(workdir, [records for records in earlier.values() if records is not None])
    done = []
    for point in points:
        records = earlier[point.folder]
        if records is not None and _answers(records, point):
            progress.say(f"[{point.name}] done before, skipped")
        else:
            records = _run_or_record_failure(point, run_point, progress)
            write_point(workdir / "points" / point.folder, records)
        done.append(records)
    mistakes = {records.summary.get("user_error") for records in done}
    if len(mistakes) == 1 and (mistake := mistakes.pop()):
        raise UserError(mistake)
    return done


def pending(points: Sequence[Point], workdir: Path) -> list[Point]:
    """The points that `run_sweep` would run, those left out that are known to be wrong."""
    return [point for point in points if point.error is None and _finished(point, workdir) is None]


def recorded(points: Sequence[Point], workdir: Path) -> list[tuple[Point, PointRecords]]:
    """The points that are finished in `workdir`, with their records; UserError if there are none.

    They may be of another device.
    """
    done = [(point, each) for point in points if (each := _finished(point, workdir)) is not None]
    if not done:
        raise UserError(
            f"{workdir} holds no finished point of this config: run it without --report_only"
        )
    return done


def _finished(point: Point, workdir: Path) -> PointRecords | None:
    """What `workdir` has of the point, if that is all."""
    records = read_point(workdir / "points" / point.folder)
    return records if records is not None and _answers(records, point) else None


def _answers(records: PointRecords, point: Point) -> bool:
    """Whether these are the finished records of the point as it is configured now."""
    return records.finished and same_config(records.config, point.config.to_dict())


def _run_or_record_failure(
    point: Point, run_point: RunPoint, progress: RunProgress
) -> PointRecords:
    progress.begin(point.name, point.config.run.new_tokens)
    try:
        if point.error is not None:
            raise point.error
        records = run_point(point, progress)
    # A sweep must survive whatever goes wrong in one point (out of memory, a compiler error,
    # a bug): nothing is swallowed, the error and its traceback are in the records, the report
    # and the exit status.
    except Exception as error:
        progress.end(f"FAILED: {one_sentence(error)}")
        return _failure(point, error)
    progress.end(one_line(records.summary))
    return records


def _failure(point: Point, error: Exception) -> PointRecords:
    return PointRecords(
        config=plain(point.config.to_dict()),
        environment=environment.describe({}),
        steps=[],
        summary={
            "status": FAILED,
            "name": point.name,
            "error": one_sentence(error),
            "user_error": one_sentence(error) if isinstance(error, UserError) else None,
            "traceback": "".join(traceback.format_exception(error)),
        },
    )


def _check_device(workdir: Path, earlier: Sequence[PointRecords]) -> None:
    here = environment.device_name()
    for records in earlier:
        there = records.environment.get("device")
        if records.finished and there != here:
            raise UserError(
                f"{workdir} holds points measured on {there!r} and this is {here!r}: "
                "give another --workdir, or python -m experiments.report to report them again"
            )


def one_line(summary: Mapping[str, Any]) -> str:
    """A finished point in one line."""
    time, exact = summary["time"], summary["exact"]
    inexact = "NOT EXACT" if is_inexact(summary) else "logits differ, as the codec is lossy"
    checked = {True: "bit-equal to bf16", False: inexact, None: "exactness not checked"}
    speed = time["tokens_per_second"]
    return ", ".join(
        [
            "done: one token" if speed is None else f"done: {speed:.4g} tokens/s",
            f"first token {time['first_token_seconds']:.3g} s",
            checked[exact["bit_equal"]],
        ]
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_sweep(workdir: Path, sweep: SweepRecords) -> None:
    """Writes `sweep.json` (what `read_sweep` needs) and `sweep.csv` (one row a point)."""
    header = dataclasses.asdict(dataclasses.replace(sweep, points=[]))
    write_json(workdir / "sweep.json", {**header, "points": [name for name, _ in sweep.points]})
    rows = [
        {
            key: value
            for key, value in flatten({**records.summary, "config": records.config}).items()
            if key not in ("traceback", "user_error") and not key.startswith("config.report.")
        }
        for _, records in sweep.points
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(workdir / "sweep.csv", buffer.getvalue())


def read_sweep(workdir: Path) -> SweepRecords:
    """What `write_sweep` wrote; UserError where there is no sweep."""
    header = workdir / "sweep.json"
    if not header.is_file():
        raise UserError(f"{workdir} holds no sweep.json: give the --workdir of a finished run")
    fields = read_json(header)
    points = []
    for folder in fields.pop("points"):
        records = read_point(workdir / "points" / folder)
        if records is None:
            raise UserError(f"{workdir / 'points' / folder} is incomplete: run the sweep again")
        points.append((folder, records))
    return SweepRecords(**fields, points=points)
