"""The rows of a benchmark's record as people read them."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from experiments import formats

_LEFT = ("op", "shape", "stored as", "by", "exact", "baseline")
_HEADINGS = (
    *("op", "shape", "batch", "stored as", "by", "time", "spread", "bound", "baseline"),
    *("its time", "ratio", "bf16 GB/s", "of copy", "bits", "exact"),
)


def table(suite: str, rows: Sequence[dict[str, Any]]) -> Table:
    """One line a row; "bound" is the time if only bytes moved."""
    result = Table(title=f"Suite {suite}", title_justify="left")
    for heading in _HEADINGS:
        result.add_column(heading, justify="left" if heading in _LEFT else "right")
    for row in rows:
        width = "" if row["width"] is None else f" {row['width']}"
        result.add_row(
            row["op"],
            f"{row['spec']} {row['shape'][0]}x{row['shape'][1]}",
            formats.MISSING if row["batch"] is None else str(row["batch"]),
            row["codec"] + width,
            row["implementation"] + (f", {row['computed_by']}" if row["computed_by"] else ""),
            formats.seconds(row["seconds"]),
            formats.percent(row["spread"]),
            formats.seconds(row["floor_seconds"]),
            row["baseline"] or formats.MISSING,
            formats.seconds(row["baseline_seconds"]),
            formats.factor(row["ratio"]),
            formats.number(1e-9 * row["bf16_bytes_per_second"]),
            formats.percent(row["fraction_of_copy_bandwidth"]),
            formats.number(row["bits_per_weight"], 4),
            formats.yes_no(row["exact"]),
        )
    return result
