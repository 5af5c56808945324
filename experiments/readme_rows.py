"""The lines of the README's performance table, each made from a record where there is one."""

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import formats
from experiments.original_notes import NOTED_HELD
from experiments.records import PointRecords, read_json
from experiments.sweep import read_sweep

Row = dict[str, Any]
Summary = dict[str, Any]

# Of a recorded command, what says only where its files went.
_PLACES = ("--out", "--workdir")
_WIDTH = 11
# Decoding one tile in the notes that began this project.
_NOTED_TILE_SECONDS = 0.295


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
      what: was measured.
      measured: the figure.
      beside: the bound or baseline.
      record: a path, relative to the folder of all records.
      command: that made it.
    """

    what: str
    measured: str
    beside: str
    record: str
    command: str


def lines(records: Path) -> Iterator[Line]:
    """All lines that the records can fill: those of the CPU, then those of the best GPU there."""
    yield from _sweep_lines(records, "cpu/embedded_cache_sweep", "experiments/demo.sh")
    device = best_gpu(records)
    # The sweep is as good on either GPU.
    for each in dict.fromkeys((device, "h100")):
        if (records / each / "tinyllama_cache_sweep").is_dir():
            yield from _sweep_lines(records, f"{each}/tinyllama_cache_sweep", None)
            break
    for folder in (device, "cpu"):
        for suite, made in _SUITES.items():
            measured: set[tuple[Any, ...]] = set()
            for path in (f"{folder}/bench_{suite}.json", f"{folder}/bench_{suite}_earlier.json"):
                if (records / path).is_file():
                    content = read_json(records / path)
                    command = _command(content["environment"]["command"])
                    rows = [row for row in content["rows"] if _what(row) not in measured]
                    measured |= {_what(row) for row in rows}
                    for what, figure, beside in made(rows):
                        yield Line(what, figure, beside, path, command)


def _what(row: Row) -> tuple[Any, ...]:
    """What a row is of: an earlier record fills in what a later one has not."""
    return tuple(row[key] for key in ("op", "spec", "codec", "width", "batch", "implementation"))


def best_gpu(records: Path) -> str:
    """The folder of the best GPU that there are records of."""
    return "h200" if (records / "h200").is_dir() else "h100"


def _command(recorded: str) -> str:
    parts = shlex.split(recorded)
    return shlex.join(part for part in parts if part.split("=")[0] not in _PLACES)


def _sweep_lines(records: Path, path: str, command: str | None) -> Iterator[Line]:
    """Lines of a sweep: exactness, and of a GPU's also speed, memory and hits."""
    sweep = read_sweep(records / path)
    points = [point for _, point in sweep.points if point.finished]
    command = command or _command(sweep.command)

    def line(what: str, measured: str, beside: str) -> Line:
        return Line(what, measured, beside, path, command)

    cached = [each for each in points if each.summary["codec"]["name"] != "bf16"]
    equal = sum(bool(each.summary["exact"]["bit_equal"]) for each in cached)
    device = cached[0].summary["device"].split(" (")[0]
    model = _model_name(cached[0].summary)
    yield line(
        f"logits of compressed points against plain bf16, {model}, {_device_name(device)}",
        f"bit-equal in {equal} of {len(cached)} points",
        "bit-equal",
    )
    if device != "cpu":
        for what, measured, beside in _speeds_and_sizes(points, cached):
            yield line(f"{what}, {model}, {_device_name(device)}", measured, beside)


def _device_name(device: str) -> str:
    """A device's kind as people call it."""
    names = (name for name in ("H100", "H200") if name in device)
    return next(names, device.upper() if device == "cpu" else device)


def _model_name(summary: Summary) -> str:
    name = str(summary["model"]["name"])
    return "TinyLlama-1.1B's shapes" if name.startswith("tinyllama") else name.replace("_", " ")


def _speeds_and_sizes(
    points: Sequence[PointRecords], cached: Sequence[PointRecords]
) -> Iterator[tuple[str, str, str]]:
    bare = next((each.summary for each in cached if not each.summary["cache"]["pages"]), None)
    if bare is None:
        return
    plain = {
        each.summary["implementations"]["matmul"]: formats.number(
            each.summary["time"]["tokens_per_second"]
        )
        for each in points
        if each.summary["codec"]["name"] == "bf16"
    }
    rivals = ", ".join(f"{speed} by {name}" for name, speed in plain.items())
    bound = formats.number(1 / bare["bound"]["seconds_per_token"])
    yield (
        "tokens per second, nothing kept decoded",
        formats.number(bare["time"]["tokens_per_second"]),
        f"bf16: {rivals}; {bound} if a step only read its bytes",
    )
    sizes = bare["bytes"]
    yield (
        "device memory of weights",
        formats.size(sizes["weights"]),
        f"{formats.size(sizes['bf16_weights'])} in bf16",
    )
    yield (
        "bits per weight of its matrices, `window`",
        formats.number(bare["codec"]["bits_per_weight"], 4),
        "16 in bf16",
    )
    yield from _hits(cached)
    yield (
        "decode time per 256 x 256 tile, all tiles decoded in one go",
        formats.seconds(bare["time"]["decode_seconds_per_tile"]),
        f"{formats.seconds(_NOTED_TILE_SECONDS)} in the notes that began this",
    )


def _hits(cached: Sequence[PointRecords]) -> Iterator[tuple[str, str, str]]:
    matrices = int(cached[0].summary["model"]["matrices"])
    label = f"{NOTED_HELD}/{matrices}"
    noted = {
        each.summary["cache"]["policy"]: each.summary
        for each in cached
        if f"{label} kept" in each.summary["name"]
    }
    if not noted:
        return
    found = ", ".join(
        f"{formats.percent(summary['hits']['byte'])} by `{policy}`"
        for policy, summary in noted.items()
    )
    best = max(summary["bound"]["byte"] for summary in noted.values())
    optimum = f"{formats.percent(best)} is the optimum"
    yield f"bytes found decoded at {label} of the weights", found, optimum


def _shape(row: Row) -> str:
    return f"[{row['shape'][0]}, {row['shape'][1]}]"


def _device(row: Row) -> str:
    return _device_name(str(row["device"]).split(" (")[0])


def _beside(row: Row) -> str:
    return f"{formats.seconds(row['baseline_seconds'])} by {row['baseline']}"


def _matmul_lines(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """A line for each shape and width, for pages, and for peers."""
    products: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["op"] == "matmul" and row["codec"] != "bf16" and row["ratio"] is not None:
            products.setdefault((row["spec"], row["codec"], row["width"]), []).append(row)
    for (spec, codec, width), alike in products.items():
        alike = sorted(alike, key=lambda row: row["batch"])
        batches = " / ".join(str(row["batch"]) for row in alike)
        ratios = " / ".join(formats.factor(row["ratio"]) for row in alike)
        first = alike[0]
        yield (
            f"product with {_shape(first)} ({spec}) in `{codec}`"
            f"{f' {width}' if width else ''}, batch {batches}, {_device(first)}",
            f"{ratios} the speed of the fastest bf16; "
            f"{formats.seconds(first['seconds'])} at batch {first['batch']}",
            f"bf16: {_beside(first)}; {formats.seconds(first['floor_seconds'])} to move its bytes",
        )
    for row in rows:
        if row["over_interpolation"] is not None:
            yield (
                f"the same in `{row['codec']}` with half of the tiles resident, {row['spec']}, "
                f"{_device(row)}",
                f"{formats.seconds(row['seconds'])}",
                f"{formats.factor(row['over_interpolation'])} the mean of none and all resident",
            )


def _decode_lines(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    for row in rows:
        width = f" {row['width']}" if row["width"] else ""
        pages = "into pages" if row["op"].endswith("pages") else "to dense bf16"
        rate = formats.size(row["bf16_bytes_per_second"])
        bound = formats.size(row["bf16_bytes_per_second"] * row["seconds"] / row["floor_seconds"])
        exact = "bit-equal" if row["exact"] else "NOT exact"
        yield (
            f"decoding {_shape(row)} ({row['spec']}) in `{row['codec']}`{width}, "
            f"{row['bits_per_weight']:.2f} bits a weight, {pages}, {_device(row)}",
            f"{rate}/s of output, {exact}",
            f"{bound}/s if only bytes moved",
        )


def _step_lines(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    for row in rows:
        if row["codec"] == "bf16":
            continue
        rivals = ", ".join(
            f"{formats.number(1 / seconds)} by {name.removeprefix('bf16, ')}"
            for name, seconds in row["baselines"].items()
        )
        width = f" {row['width']}" if row["width"] else ""
        yield (
            f"one decode step of {row['spec']}'s shapes in `{row['codec']}`{width}, batch "
            f"{row['batch']}, context {row['context']}, {_device(row)}",
            f"{formats.number(1 / row['seconds'])} tokens/s, {formats.factor(row['ratio'])}, "
            f"with {formats.factor(row['fraction_of_bf16_bytes'])} the weight bytes",
            f"bf16: {rivals}; {formats.number(1 / row['floor_seconds'])} if only bytes moved",
        )


def _encode_lines(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    for row in rows:
        if row["width"] in (_WIDTH, None):
            yield (
                f"encoding {_shape(row)} ({row['spec']}) in `{row['codec']}`, {_device(row)}",
                f"{formats.size(row['bf16_bytes_per_second'])}/s of input",
                f"{formats.seconds(row['seconds'])} in all",
            )


_SUITES: dict[str, Callable[[Sequence[Row]], Iterator[tuple[str, str, str]]]] = {
    "matmul": _matmul_lines,
    "decode": _decode_lines,
    "step": _step_lines,
    "encode": _encode_lines,
}
