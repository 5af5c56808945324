"""A picture of each suite, drawn from the rows of its record."""

from collections.abc import Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.plots import BOUND_COLOUR, STYLE, label_bar, png

Rows = Sequence[dict[str, Any]]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_MARKERS = "os^D*vPX"
_OURS, _THEIRS = "#0072B2", "#999999"


def draw(suite: str, rows: Rows) -> bytes:
    """A PNG of a suite's rows.

    Args:
      suite: "decode", "matmul", "step" or "encode".
      rows: of that suite, at least one.
    """
    with plt.rc_context(STYLE):
        return png(_draw_ratios(rows) if suite == "matmul" else _draw_rates(suite, rows))


def _draw_ratios(rows: Rows) -> Figure:
    """Speed of the compressed product over the fastest in bf16, against the batch."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["op"] != "matmul" or row["codec"] == "bf16" or row["ratio"] is None:
            continue
        width = "" if row["width"] is None else f" {row['width']}"
        label = f"{row['spec']} {row['shape']}, {row['codec']}{width}"
        lines.setdefault(label, []).append((row["batch"], row["ratio"]))
    for number, (label, points) in enumerate(lines.items()):
        batches, ratios = zip(*sorted(points), strict=True)
        axes.plot(
            batches,
            ratios,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle="-" if len(points) > 1 else "none",
            label=label,
        )
    axes.axhline(1.0, color=BOUND_COLOUR, linestyle="--", label="the fastest bf16")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda batch, _: f"{batch:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch (rows of x)")
    axes.set_ylabel("speed over the fastest bf16")
    axes.set_title(f"Products with compressed matrices, {rows[0]['device']}")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _draw_rates(suite: str, rows: Rows) -> Figure:
    """A bar for each row, and on it the rate if only bytes moved."""
    if suite == "step":
        unit, bf16_bytes = "tokens per second", False
    else:
        unit, bf16_bytes = f"GB/s of bf16 {'output' if suite == 'decode' else 'input'}", True
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.42 * len(rows)))
    for place, row in enumerate(rows):
        scale = 1e-9 * row["bf16_bytes_per_second"] * row["seconds"] if bf16_bytes else 1.0
        rate = scale / row["seconds"]
        ours = row["implementation"] in ("mosaic_gpu", "xla") and row["codec"] != "bf16"
        axes.barh(place, rate, color=_OURS if ours else _THEIRS)
        if row["floor_seconds"] is not None:
            bound = scale / row["floor_seconds"]
            axes.plot([bound, bound], [place - 0.4, place + 0.4], color=BOUND_COLOUR)
        label_bar(axes, f"{rate:,.4g}", rate, place)
    axes.plot([], [], color=BOUND_COLOUR, label="bound: bytes to move / copy bandwidth")
    axes.set_yticks(range(len(rows)), [_name(row) for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)
    axes.set_title(f"Suite {suite}, {rows[0]['device']}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6 / len(rows) - 0.1))
    return figure


def _name(row: dict[str, Any]) -> str:
    width = "" if row["width"] is None else f" {row['width']}"
    pages = " into pages" if row["op"].endswith("pages") else ""
    ran = "" if row["implementation"] == row["codec"] else f", {row['implementation']}"
    return f"{row['spec']}, {row['codec']}{width}{pages}{ran}"
