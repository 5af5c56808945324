"""Writes a sweep's `sweep.csv`, plots and `report.html` again, from its records alone.

python -m experiments.report --workdir=runs/embedded_cache_sweep
"""

from pathlib import Path

from absl import flags

from codecjax.errors import UserError
from experiments import cli
from experiments.page import write_report
from experiments.sweep import read_sweep, write_sweep

_WORKDIR = "workdir"


def main(argv: list[str]) -> int:
    del argv
    workdir = flags.FLAGS[_WORKDIR].value
    if not workdir:
        raise UserError("no records were named: give --workdir=FOLDER of a finished run")
    sweep = read_sweep(Path(workdir))
    write_sweep(Path(workdir), sweep)
    print(write_report(Path(workdir), sweep))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string(_WORKDIR, "", "Folder of a finished run.")
    cli.run(main)
