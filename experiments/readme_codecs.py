"""The lines of the README's table of codecs, each made from a record where there is one."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments import formats
from experiments.readme_rows import best_gpu
from experiments.records import read_json

_RESULTS = {True: "every bit", False: "NOT exact", None: "weights near them"}
_HEADINGS = ("stored as", "bits a weight", "of", "what comes back", "speed", "record")


@dataclasses.dataclass(frozen=True)
class CodecLine:
    """One line of the table.

    Attributes:
      stored_as: codec, or what it is compared with.
      bits: a weight, everything included.
      source: the weights that were stored.
      result: what decoding gives.
      speed: of encoding and of use; empty where it was not measured.
      record: a path, relative to the folder of all records.
    """

    stored_as: str
    bits: float
    source: str
    result: str
    speed: str
    record: str


def codec_lines(records: Path) -> Iterator[CodecLine]:
    """All lines that the records can fill: codecs on Gaussian weights, then on real ones."""
    yield from _encoded(records, best_gpu(records))
    path = "cpu/prediction_ablation/ablation.json"
    if (records / path).is_file():
        yield from _predicted(read_json(records / path)["rows"], path)
    path = "cpu/quality.json"
    if (records / path).is_file():
        yield from _of_quality(read_json(records / path)["rows"], path)


def table(all_lines: list[CodecLine], records: str) -> str:
    """The lines as a Markdown table; `records` is their folder as the README sees it."""
    rows = [" | ".join(("", *_HEADINGS, "")).strip(), "|" + "---|" * len(_HEADINGS)]
    for line in all_lines:
        cells = (
            line.stored_as,
            f"{line.bits:.2f}",
            line.source,
            line.result,
            line.speed,
            f"[{line.record}]({records}/{line.record})",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _name(row: dict[str, Any]) -> str:
    return f"`{row['codec']}`" + (f" {row['width']}" if row["width"] else "")


def _encoded(records: Path, device: str) -> Iterator[CodecLine]:
    path = f"{device}/bench_encode.json"
    if not (records / path).is_file():
        return
    products: dict[tuple[Any, ...], dict[str, Any]] = {}
    products_path = records / device / "bench_matmul.json"
    if products_path.is_file():
        for row in read_json(products_path)["rows"]:
            if row["op"] == "matmul" and row["batch"] == 1:
                products[row["spec"], row["codec"], row["width"]] = row
    for row in read_json(records / path)["rows"]:
        speed = f"encoded at {formats.size(row['bf16_bytes_per_second'])}/s"
        product = products.get((row["spec"], row["codec"], row["width"]))
        if product is not None and product["ratio"] is not None:
            speed += f", {formats.factor(product['ratio'])} bf16's product at batch 1"
        result = _RESULTS[row["exact"]]
        source = f"Gaussian rows {row['shape'][0]} x {row['shape'][1]}"
        yield CodecLine(_name(row), row["bits_per_weight"], source, result, speed, path)


def _predicted(rows: list[dict[str, Any]], path: str) -> Iterator[CodecLine]:
    for row in rows:
        if row["source"] == "embedded_model":
            result = f"int8 values; residuals have {row['entropy_bits']:.2f} bits of entropy"
            name = f"`int8_rans`, prediction {row['prediction']}"
            yield CodecLine(name, row["bits_per_weight"], "embedded model", result, "", path)


def _of_quality(rows: list[dict[str, Any]], path: str) -> Iterator[CodecLine]:
    for row in rows:
        result = f"perplexity {row['perplexity']:.2f}, {row['divergence']:.4f} nats a token off"
        yield CodecLine(row["name"], row["bits_per_weight"], "embedded model", result, "", path)
