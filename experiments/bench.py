"""Times the kernels beside bf16 and beside other systems, checks them, and records it all.

    python -m experiments.bench --suite=matmul,decode,step,encode   # or --suite=all
    python -m experiments.bench --suite=decode,matmul --peers       # DFloat11 and nvCOMP too
    python -m experiments.bench --suite=matmul,decode --tune        # finds the kernels' settings

Each suite leaves a JSON record (see `bench_rows` for its rows), by default runs/bench_<suite>.json,
and a picture beside it. Times are the device's, by slope timing over different random matrices in
turn that together exceed the GPU's L2 twice, or by the profiler where the host would set the pace;
what was timed was checked on the same inputs before. Suites decode, matmul and step need a GPU on
which mosaic_gpu runs; --implementation=xla lets them run anywhere, which small --specs make
bearable.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console

import kernels_pallas
from codecjax.errors import UserError
from experiments import (
    bench_decode,
    bench_encode,
    bench_matmul,
    bench_peers,
    bench_plots,
    bench_step,
    bench_table,
    bench_tune,
    cli,
    environment,
    timing,
)
from experiments.bench_rows import Place, Row
from experiments.bench_settings import Settings
from experiments.records import write_bytes, write_json
from kernels_pallas import tuning
from kernels_pallas.implementations import MOSAIC_GPU, XLA

ALL, AUTO = "all", "auto"
SUITES: dict[str, Callable[[Settings], Iterator[list[Row]]]] = {
    bench_matmul.SUITE: bench_matmul.measure,
    bench_decode.SUITE: bench_decode.measure,
    bench_step.SUITE: bench_step.measure,
    bench_encode.SUITE: bench_encode.measure,
}
_SPECS = {
    bench_matmul.SUITE: bench_matmul.KNOWN,
    bench_decode.SUITE: bench_decode.KNOWN,
    bench_step.SUITE: bench_step.KNOWN,
    bench_encode.SUITE: bench_encode.KNOWN,
}
_TABLE_WIDTH = 220


def define_flags() -> None:
    flags.DEFINE_list("suite", [], f"What to measure: {', '.join(SUITES)} or {ALL}.")
    flags.DEFINE_string("out", None, "Where the record of one suite goes, or a tuning file.")
    flags.DEFINE_list("specs", [], "Names of shapes; by default the suite's own choice.")
    flags.DEFINE_list("batches", [], "Rows of x in suite matmul; by default its own choice.")
    flags.DEFINE_string(
        "implementation", MOSAIC_GPU, f"Of the ops: {MOSAIC_GPU}, {XLA} or {AUTO}, the fastest."
    )
    flags.DEFINE_bool("peers", False, "Measure DFloat11 and nvCOMP too.")
    flags.DEFINE_bool("tune", False, "Find and keep the kernels' settings instead of measuring.")


def chosen_suites(names: Sequence[str]) -> tuple[str, ...]:
    """The suites asked for."""
    if not names:
        raise UserError(f"--suite is missing: choose among {', '.join(SUITES)} or {ALL}")
    for name in names:
        if name not in (*SUITES, ALL):
            raise UserError(f"unknown suite {name!r}: choose among {', '.join(SUITES)} or {ALL}")
    return tuple(SUITES) if ALL in names else tuple(dict.fromkeys(names))


def check_specs(specs: Sequence[str], suites: Sequence[str]) -> None:
    """Raises UserError where no suite knows a shape that was asked for, or a suite has none."""
    known = list(dict.fromkeys(spec for suite in suites for spec in _SPECS[suite]))
    for name in specs:
        if name not in known:
            raise UserError(f"unknown shape {name!r} in --specs: choose among {', '.join(known)}")
    for suite in suites:
        if specs and not set(specs) & set(_SPECS[suite]):
            raise UserError(
                f"suite {suite!r} has none of the shapes {', '.join(specs)}: "
                f"add to --specs some of {', '.join(_SPECS[suite])}"
            )


def batch_sizes(texts: Sequence[str]) -> tuple[int, ...]:
    for text in texts:
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"{text!r} in --batches is no positive whole number: give rows of x")
    return tuple(int(text) for text in texts)


def resolved(implementation: str, suites: Sequence[str]) -> str:
    """The implementation to run; UserError where the suites need one that cannot run here."""
    # Codecs are plain JAX, so the encoder runs anywhere.
    if set(suites) <= {bench_encode.SUITE}:
        return XLA
    try:
        return kernels_pallas.resolve(None if implementation == AUTO else implementation)
    except UserError as error:
        raise UserError(
            f"{error}; give --implementation={XLA} to run the suites anywhere, slowly"
        ) from error


def run_suite(suite: str, settings: Settings, output: Path, console: Console) -> None:
    """Measures a suite and writes its record as it goes, then its picture."""
    place = Place.here(settings.bandwidth)
    ran = settings.implementation
    implementations = {"matmul": ran, "decode": ran}
    if suite == bench_step.SUITE:
        implementations |= bench_step.implementations(ran)
    rows: list[dict[str, Any]] = []
    for new in SUITES[suite](settings):
        rows += [row.record(place) for row in new]
        # Written each time, so that an interruption costs no more than one shape.
        record = {
            "environment": environment.describe(implementations),
            "copy_bytes_per_second": settings.bandwidth,
            "rows": rows,
        }
        write_json(output, record)
        settings.say(f"{suite}, {new[-1].spec}: measured")
    picture = output.with_suffix(".png")
    write_bytes(picture, bench_plots.draw(suite, rows))
    console.print(bench_table.table(suite, rows))
    settings.say(f"record: {output}")
    settings.say(f"picture: {picture}")


def run_tuning(
    suites: Sequence[str], settings: Settings, out: str | None, console: Console
) -> None:
    """Tunes the kernels of the suites and shows what was tried."""
    ops = [suite for suite in suites if suite in bench_tune.DEFAULT]
    if not ops or settings.implementation != MOSAIC_GPU:
        raise UserError(
            f"--tune tunes the kernels of {MOSAIC_GPU}: "
            f"give --suite={','.join(bench_tune.DEFAULT)} and no --implementation"
        )
    kind = jax.devices()[0].device_kind
    output = Path(out) if out else tuning.file_of(kind)
    trials = bench_tune.tune(ops, settings, bench_tune.mosaic_gpu(), output, kind)
    console.print(bench_tune.table(trials))
    settings.say(f"settings: {output}")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: give --suite=NAME")
    # PyTorch and CuPy want memory beside JAX; read when JAX first asks for a device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    values = flags.FLAGS
    suites = chosen_suites(values.suite)
    check_specs(values.specs, suites)
    batches = batch_sizes(values.batches)
    if values.out and len(suites) > 1 and not values.tune:
        raise UserError("--out names one file and there are several suites: leave it out")
    implementation = resolved(values.implementation, suites)
    if values.peers:
        bench_peers.check()
    console = Console(width=_TABLE_WIDTH)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    bandwidth = timing.copy_bandwidth()
    say(f"copy bandwidth {bandwidth / 1e9:,.0f} GB/s, read plus written")
    settings = Settings(
        specs=tuple(values.specs),
        batches=batches,
        implementation=implementation,
        peers=values.peers,
        bandwidth=bandwidth,
        say=say,
    )
    if values.tune:
        run_tuning(suites, settings, values.out, console)
        return 0
    for suite in suites:
        run_suite(suite, settings, Path(values.out or f"runs/bench_{suite}.json"), console)
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
