"""The main job: runs an experiment config, or every point of its sweep, and reports it.

python -m experiments.run --config=configs/embedded_cache_sweep.py
python -m experiments.run --config=configs/base.py --config.cache.budget_fraction=0.5 \\
    --config.model.path=FOLDER --workdir=runs/mine

What is recorded stands in `experiments.records`. Points that are done already are skipped, so
an interrupted run goes on where it stopped; a point that fails is recorded with its error and
the others still run (exit status 1). A config whose field `kind` is "prediction_ablation" or
"codec_frontier" is run and reported by the module of that name, the former without points.

With --report_only the points that are finished are reported, of a run that was cut off, say.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import ConfigDict
from rich.console import Console

from codecjax.errors import UserError
from experiments import cli, codec_frontier, prediction_ablation
from experiments.configuration import Point, load_module, resolve_points
from experiments.environment import command_line
from experiments.exactness import is_inexact
from experiments.page import write_report
from experiments.point import PointRunner
from experiments.progress import RunProgress, make_console
from experiments.records import PointRecords
from experiments.sweep import SweepRecords, pending, recorded, run_sweep, write_sweep
from experiments.tables import terminal_table

_CONFIG, _WORKDIR, _REPORT_ONLY = "config", "workdir", "report_only"


def run(
    config_file: Path,
    config: ConfigDict,
    overrides: Mapping[str, Any],
    workdir: Path | None = None,
    report_only: bool = False,
) -> int:
    """Runs what a config file asks for; returns the exit status.

    Args:
      config_file: the file, whose `get_sweep` makes the points.
      config: what its `get_config` returned, with `overrides` applied.
      overrides: flat; what the command line set.
      workdir: folder of the records; `runs/<name of the config>` by default.
      report_only: whether to run no point, and report those that are finished.

    Raises:
      UserError: the config, its model or `workdir` is no good for any point.
    """
    console = make_console()
    module = load_module(config_file)
    workdir = workdir or Path("runs") / module.name
    if config.get("kind") == prediction_ablation.KIND:
        if report_only:
            raise UserError("a prediction ablation has no points: leave --report_only out")
        return prediction_ablation.run(config, workdir, console)
    if config.get("kind") == codec_frontier.KIND:
        frontier = codec_frontier.run(module, config, overrides, workdir, console, report_only)
        return _status(frontier, console)
    points = resolve_points(config, module.sweep, overrides)
    if report_only:
        points, records = map(list, zip(*recorded(points, workdir), strict=True))
    else:
        runner = PointRunner()
        with RunProgress(console) as progress:
            _check_model(runner, config, pending(points, workdir))
            records = run_sweep(points, workdir, runner.run, progress)
    sweep = SweepRecords(
        name=module.name,
        title=config.report.title,
        about=config.report.about or module.about,
        original_notes=config.report.original_notes,
        command=command_line(),
        points=[(point.folder, each) for point, each in zip(points, records, strict=True)],
    )
    write_sweep(workdir, sweep)
    report = write_report(workdir, sweep)
    console.print(terminal_table(records))
    for what, path in (
        ("report", report),
        ("table", workdir / "sweep.csv"),
        ("plots", workdir / "plots"),
        ("records", workdir / "points"),
    ):
        console.print(f"{what:8}{path}", highlight=False, markup=False, soft_wrap=True)
    return _status(records, console)


def _check_model(runner: PointRunner, config: ConfigDict, waiting: Sequence[Point]) -> None:
    """Finds a damaged model or an impossible command before the first of its points fails."""
    source = config.model.to_dict()
    if waiting and all(point.config.model.to_dict() == source for point in waiting):
        runner.check(waiting[0].config, config)


def _status(records: Sequence[PointRecords], console: Console) -> int:
    failed = [each.summary["name"] for each in records if not each.finished]
    wrong = [
        each.summary["name"]
        for each in records
        if each.finished and (is_inexact(each.summary) or not each.summary["tiles"]["as_planned"])
    ]
    for names, what in (
        (failed, "failed; the report shows why"),
        (wrong, "did not compute what bf16 computes, or decoded other tiles than planned"),
    ):
        if names:
            console.print(
                f"{len(names)} of {len(records)} points {what}: {'; '.join(names)}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    return cli.EXIT_FAILED if failed or wrong else 0


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: fields are set by --config.FIELD=VALUE")
    flag = flags.FLAGS[_CONFIG]
    if flag.value is None:
        raise UserError("no config was named: give --config=configs/embedded_cache_sweep.py")
    # A config file may take an argument behind a colon.
    config_file = Path(config_flags.get_config_filename(flag).split(":", 1)[0])
    if not config_file.is_file():
        raise cli.missing_config(str(config_file))
    workdir = flags.FLAGS[_WORKDIR].value
    return run(
        config_file,
        flag.value,
        config_flags.get_override_values(flag),
        Path(workdir) if workdir else None,
        flags.FLAGS[_REPORT_ONLY].value,
    )


if __name__ == "__main__":
    config_flags.DEFINE_config_file(_CONFIG, lock_config=True)
    flags.DEFINE_string(_WORKDIR, "", "Folder of the records; by default runs/NAME OF THE CONFIG.")
    flags.DEFINE_bool(_REPORT_ONLY, False, "Reports the points that are finished and runs none.")
    cli.run(main)
