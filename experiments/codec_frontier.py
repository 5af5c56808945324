"""Bits a weight against speed and quality, of every codec, rate and budget of a sweep.

Leaves in the run's folder

    points/           the records of each point, as those of any sweep
    quality/          what each codec costs in quality, see `experiments.codec_quality`
    frontier.json     the config, the environment, one `Row` a point, and the points left out
    report.md         the same as a table, and what it says in words
    frontier.png      the same as pictures, see `experiments.frontier_plots`
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections.config_dict import ConfigDict
from rich.console import Console

import kernels_pallas
from codecjax.errors import UserError
from codecjax.io.huggingface import read_folder
from experiments import environment, frontier_plots, frontier_report
from experiments.codec_quality import held_out_texts, quality_of
from experiments.configuration import ConfigModule, Point, codec_label, resolve_points, tile_of
from experiments.frontier_rows import row_of, with_fronts
from experiments.point import PointRunner
from experiments.progress import RunProgress
from experiments.quality import Quality
from experiments.records import PointRecords, plain, write_bytes, write_json, write_text
from experiments.sweep import pending, recorded, run_sweep
from kernels_pallas.arguments import check_codec

KIND = "codec_frontier"
_NOT_RUN = "it has not run"


def check(config: ConfigDict) -> None:
    """UserError where a field that only this experiment has, or needs, is impossible."""
    if config.run.new_tokens < 2:
        raise UserError(
            f"run.new_tokens {config.run.new_tokens} shows no speed, as the first token reads "
            "the prompt: generate at least 2"
        )
    if not config.quality.measure:
        return
    if not config.model.path:
        raise UserError(
            "model.path is empty and random weights have no quality: "
            "set quality.measure to false, or model.path to a Hugging Face folder"
        )
    if config.quality.characters < 1:
        raise UserError(
            f"quality.characters {config.quality.characters} leaves no text: give at least 1"
        )


def of_points(
    config: ConfigDict, overrides: Mapping[str, Any]
) -> tuple[ConfigDict, dict[str, Any]]:
    """Config and overrides without the fields that no point depends on."""
    ours = ("kind", "quality")
    kept = config.copy_and_resolve_references()
    with kept.unlocked():
        for name in ours:
            del kept[name]
    return kept, {
        name: value for name, value in overrides.items() if name.split(".")[0] not in ours
    }


def check_same_model(points: Sequence[Point]) -> None:
    """UserError where points store different models or tiles: a front would compare nothing."""
    compared = {
        json.dumps([point.config.model.to_dict(), *tile_of(point.config)]) for point in points
    }
    if len(compared) > 1:
        raise UserError(
            "the points of a codec frontier have different models or tiles: "
            "let get_sweep() change codecs and budgets only"
        )


def without_kernel(point: Point) -> str | None:
    """Why the point's implementation cannot run its codec; None where it can."""
    try:
        implementation = kernels_pallas.resolve(point.config.run.implementation)
    except UserError:
        # Another mistake, of which the point fails.
        return None
    try:
        check_codec(point.config.codec.name, implementation)
    except UserError as error:
        return str(error)
    return None


def run(
    module: ConfigModule,
    config: ConfigDict,
    overrides: Mapping[str, Any],
    workdir: Path,
    console: Console,
    report_only: bool = False,
) -> list[PointRecords]:
    """Runs the points, measures the quality, and writes the records; returns those of the points.

    Args:
      module: the config's file.
      config: what its `get_config` returned, with `overrides` applied.
      overrides: flat; what the command line set.
      workdir: folder of the records.
      console: told of progress and results.
      report_only: whether to run no point, and report those that are finished.

    Raises:
      UserError: a field is impossible, the model cannot be read, or no point is finished that is
        to be reported.
    """
    check(config)
    kept, kept_overrides = of_points(config, overrides)
    every = resolve_points(kept, module.sweep, kept_overrides)
    check_same_model(every)
    left_out = {point.name: why for point in every if (why := without_kernel(point))}
    points = [point for point in every if point.name not in left_out]
    runner = PointRunner()
    with RunProgress(console) as progress:
        for name, why in left_out.items():
            progress.say(f"[{name}] LEFT OUT: {why}")
        if report_only:
            finished = recorded(points, workdir)
            done = {point.name for point, _ in finished}
            left_out |= {each.name: _NOT_RUN for each in points if each.name not in done}
            records = [each for _, each in finished]
        else:
            if waiting := pending(points, workdir):
                runner.check(waiting[0].config, config)
            records = run_sweep(points, workdir, runner.run, progress)
            finished = [
                (point, each) for point, each in zip(points, records, strict=True) if each.finished
            ]
        qualities = _qualities(config, [point for point, _ in finished], workdir, progress)
    found = {
        "config": config.to_dict(),
        "environment": _environment(finished, report_only),
        "left_out": left_out,
        "failed": {
            each.summary["name"]: each.summary["error"] for each in records if not each.finished
        },
    }
    _write(workdir, finished, qualities, found, progress)
    return records


def _write(
    workdir: Path,
    finished: Sequence[tuple[Point, PointRecords]],
    qualities: Mapping[str, Quality],
    found: Mapping[str, Any],
    progress: RunProgress,
) -> None:
    """Writes record, picture and report of the points, and says what they show.

    Args:
      workdir, finished, progress: as in `run`.
      qualities: of codecs, by label.
      found: what else the record says.
    """
    labelled = [(codec_label(point.config), each) for point, each in finished]
    rows = with_fronts(
        [row_of(label, each.summary, qualities.get(label)) for label, each in labelled]
    )
    record = plain({**found, "rows": [dataclasses.asdict(row) for row in rows]})
    write_json(workdir / "frontier.json", record)
    if rows:
        write_bytes(workdir / frontier_report.PICTURE, frontier_plots.draw(rows))
    write_text(workdir / "report.md", frontier_report.report(rows, record))
    for sentence in frontier_report.findings(rows, record):
        progress.say(sentence)
    for what, name in (("report", "report.md"), ("record", "frontier.json"), ("points", "points")):
        progress.say(f"{what:8}{workdir / name}")


def _qualities(
    config: ConfigDict, points: Sequence[Point], workdir: Path, progress: RunProgress
) -> dict[str, Quality]:
    """By label, of each codec that a point has; empty where none is to be measured."""
    if not config.quality.measure or not points:
        return {}
    folder = read_folder(config.model.path)
    texts = held_out_texts(config.quality.characters)
    by_codec = {codec_label(point.config): point.config for point in points}
    return {
        label: Quality(**quality_of(each, folder, texts, workdir, progress.say))
        for label, each in by_codec.items()
    }


def _environment(
    finished: Sequence[tuple[Point, PointRecords]], report_only: bool
) -> dict[str, Any]:
    """Where this ran, or where the latest of the points did that are only reported here."""
    ran = _implementations(finished)
    if not report_only:
        return environment.describe(ran)
    latest = max((each.environment for _, each in finished), key=lambda each: each["time_utc"])
    return {**latest, "implementations": ran}


def _implementations(finished: Sequence[tuple[Point, PointRecords]]) -> dict[str, str]:
    """What ran each op; where points differ, all of it."""
    ran: dict[str, set[str]] = {}
    for _, each in finished:
        for op, name in each.summary["implementations"].items():
            ran.setdefault(op, set()).add(name)
    return {op: ", ".join(sorted(names)) for op, names in ran.items()}
