"""The pictures of a sweep: speed, hits, memory and steps against the cache budget."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.records import PointRecords

# Okabe and Ito's palette, which colour-blind readers can tell apart.
POLICY_COLOURS = {
    "pinned": "#0072B2",
    "lru": "#D55E00",
    "fifo": "#E69F00",
    "lfu": "#CC79A7",
    "none": "#000000",
    "all": "#009E73",
    "belady": "#56B4E9",
    "min_bypass": "#999999",
}
POLICY_MARKERS = dict(zip(POLICY_COLOURS, "osD^xPv*", strict=True))
BOUND_COLOUR = "#444444"
STYLE = {
    "figure.dpi": 120,
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_BUDGET_LABEL = "cache budget (% of all decoded weights)"
_RATES = (
    ("object", "object hit rate", "matrices found decoded"),
    ("byte", "byte hit rate", "bytes found decoded"),
    ("cost", "cost hit rate", "decode time saved"),
)


def draw(points: Sequence[PointRecords]) -> dict[str, bytes]:
    """PNG files by name, from the finished points of a sweep."""
    finished = [point for point in points if point.finished]
    if not finished:
        return {}
    cached = [point for point in finished if point.summary["codec"]["name"] != "bf16"]
    pictures: dict[str, bytes] = {}
    with plt.rc_context(STYLE):
        if cached:
            pictures["tokens_per_second"] = png(_draw_speed(finished, cached))
            pictures["hit_rates"] = png(_draw_hits(cached))
        pictures["device_bytes"] = png(_draw_bytes(finished))
        pictures["step_seconds"] = png(_draw_steps(finished))
    return pictures


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def label_bar(axes: Axes, text: str, end: float, place: float) -> None:
    """Writes beside the end of a horizontal bar, on white so that lines do not cross it."""
    axes.annotate(
        text,
        (end, place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def budget_percent(point: PointRecords) -> float:
    """The point's budget as a percentage of all its decoded weights."""
    return 100 * float(point.summary["cache"]["budget_fraction"])


def _by_policy(points: Sequence[PointRecords]) -> dict[str, list[PointRecords]]:
    policies: dict[str, list[PointRecords]] = {}
    for point in sorted(points, key=budget_percent):
        policies.setdefault(point.summary["cache"]["policy"], []).append(point)
    return policies


def _spread(policies: dict[str, list[PointRecords]]) -> dict[str, float]:
    """A small shift along the budget axis per policy, so that equal results stay visible."""
    if len(policies) < 3:
        return dict.fromkeys(policies, 0.0)
    width = 0.8
    middle = (len(policies) - 1) / 2
    return {policy: width * (index - middle) for index, policy in enumerate(policies)}


def _plot_series(axes: Axes, points: list[PointRecords], values: list[Any], shift: float) -> None:
    policy = points[0].summary["cache"]["policy"]
    axes.plot(
        [budget_percent(point) + shift for point in points],
        [float("nan") if value is None else value for value in values],
        color=POLICY_COLOURS.get(policy),
        marker=POLICY_MARKERS.get(policy, "o"),
        linestyle="-" if len(points) > 2 else "none",
        label=policy,
    )


def _draw_speed(finished: list[PointRecords], cached: list[PointRecords]) -> Figure:
    figure, axes = plt.subplots(figsize=(8, 4.5))
    policies = _by_policy(cached)
    shifts = _spread(policies)
    for policy, points in policies.items():
        speeds = [point.summary["time"]["tokens_per_second"] for point in points]
        _plot_series(axes, points, speeds, shifts[policy])
    bounds = {
        budget_percent(point): 1 / point.summary["bound"]["seconds_per_token"]
        for point in sorted(cached, key=budget_percent)
        if point.summary["bound"]["seconds_per_token"]
        and point.summary["cache"]["policy"] in ("pinned", "none", "all")
    }
    if bounds:
        axes.plot(
            list(bounds),
            list(bounds.values()),
            color=BOUND_COLOUR,
            linestyle=":",
            marker="_",
            label="bound: bytes to read / copy bandwidth",
        )
    baselines = [point for point in finished if point.summary["codec"]["name"] == "bf16"]
    for point, style in zip(baselines, ("--", "-.", (0, (1, 3)), (0, (5, 1))), strict=False):
        speed = point.summary["time"]["tokens_per_second"]
        if speed is not None:
            axes.axhline(
                speed, color="#009E73", linestyle=style, label=f"{point.summary['name']}: no codec"
            )
    low, high = axes.get_ylim()
    drawn = [value for line in axes.lines for value in line.get_ydata() if value > 0]
    if drawn and max(drawn) > 20 * min(drawn):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, high + 0.05 * (high - low))
    axes.set_xlabel(_BUDGET_LABEL)
    axes.set_ylabel("tokens per second")
    axes.set_title("Speed against cache budget")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _draw_hits(cached: list[PointRecords]) -> Figure:
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    policies = _by_policy(cached)
    shifts = _spread(policies)
    for axes, (rate, title, meaning) in zip(panels, _RATES, strict=True):
        for policy, points in policies.items():
            values = [point.summary["hits"][rate] for point in points]
            percents = [None if value is None else 100 * value for value in values]
            _plot_series(axes, points, percents, shifts[policy])
        optimum = {
            budget_percent(point): 100 * point.summary["bound"][rate]
            for point in sorted(cached, key=budget_percent)
            if point.summary["bound"][rate] is not None
        }
        axes.plot(
            list(optimum),
            list(optimum.values()),
            color=BOUND_COLOUR,
            linestyle=":",
            marker="_",
            markersize=14,
            label="offline optimum",
        )
        axes.set_title(f"{title}\n({meaning})", fontsize=10)
        axes.set_xlabel(_BUDGET_LABEL)
        axes.set_ylim(-4, 104)
    panels[0].set_ylabel("% over all steps")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _draw_bytes(finished: list[PointRecords]) -> Figure:
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.42 * len(finished)))
    names = [point.summary["name"] for point in finished]
    largest = max(point.summary["bytes"]["total"] for point in finished)
    unit, scale = ("GB", 1e9) if largest >= 2e9 else ("MB", 1e6)
    left = [0.0] * len(finished)
    parts = (
        ("weights", "weights as stored", "#0072B2", ""),
        ("pages", "pages (decoded weights)", "#E69F00", "//"),
        ("kv", "KV cache", "#009E73", ".."),
    )
    for key, label, colour, hatch in parts:
        sizes = [point.summary["bytes"][key] / scale for point in finished]
        axes.barh(
            names, sizes, left=left, color=colour, label=label, hatch=hatch, edgecolor="white"
        )
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for row, total in enumerate(left):
        label_bar(axes, f"{total:.3g}", total, row)
    plain = finished[0].summary["bytes"]["bf16_weights"] / scale
    axes.axvline(plain, color=BOUND_COLOUR, linestyle="--", label="weights in bf16")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.12 * max([*left, plain]))
    axes.set_xlabel(f"device memory ({unit})")
    axes.set_title("What device memory holds")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _draw_steps(finished: list[PointRecords]) -> Figure:
    figure, (first, later) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(1, 3))
    # Cividis is read alike with and without colour vision; its yellow end is too pale for lines.
    colours = plt.get_cmap("cividis")
    last = max(1, len(finished) - 1)
    for index, point in enumerate(finished):
        milliseconds = [1e3 * step["seconds"] for step in point.steps]
        colour, line = colours(0.9 * index / last), ("-", "--", "-.", ":")[index % 4]
        first.bar(index, milliseconds[0], color=colour)
        later.plot(
            range(1, len(milliseconds)),
            milliseconds[1:],
            color=colour,
            linestyle=line,
            label=point.summary["name"],
        )
    first.set_xticks([])
    first.set_xlabel("points, in order")
    first.set_ylabel("milliseconds")
    first.set_title("Step 0: reads the prompt")
    later.set_ylim(bottom=0)
    later.set_xlabel("step")
    later.set_title("Later steps: one token each")
    later.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
