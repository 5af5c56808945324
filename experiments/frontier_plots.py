"""The picture of a codec frontier: bits a weight against speed and quality, fronts marked."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.axes import Axes

from experiments import formats
from experiments.frontier_rows import FRONTS, Row
from experiments.plots import BOUND_COLOUR, STYLE, png

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9")
_MARKERS = "os^D*vPX"
# Divergences below this, in nats a token, are drawn on a linear scale, which has room for 0.
_LINEAR_BELOW = 1e-4
_STORED = "stored bits a weight"
_HELD = "bits a weight in device memory, pages included"
# By front: the labels of its axes, and what is drawn of a row.
_AXES: dict[str, tuple[str, str, Callable[[Row], float | None]]] = {
    "speed": (_STORED, "tokens per second", lambda row: row.tokens_per_second),
    "memory": (_HELD, "tokens per second", lambda row: row.tokens_per_second),
    "perplexity": (_STORED, "perplexity on held-out texts", lambda row: row.perplexity),
    "divergence": (_STORED, "KL(bf16 || stored), nats a token", lambda row: row.divergence),
}
_FRONT_STYLE: dict[str, Any] = {
    "color": BOUND_COLOUR,
    "linestyle": ":",
    "marker": "o",
    "markersize": 13,
    "markerfacecolor": "none",
}


def draw(rows: Sequence[Row]) -> bytes:
    """A PNG with a panel for each front that any row is on; at least one row."""
    shown = [name for name in FRONTS if any(name in row.fronts for row in rows)]
    down = -(-len(shown) // 2)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(down, 2, figsize=(12, 4.8 * down), squeeze=False)
        for axes, name in zip(grid.flat, shown, strict=False):
            _draw_panel(axes, name, rows)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        _explain(grid[0][1], rows)
        figure.tight_layout()
        return png(figure)


def _draw_panel(axes: Axes, name: str, rows: Sequence[Row]) -> None:
    front = FRONTS[name]
    bits_label, other_label, other = _AXES[name]
    places = [(row, front.bits(row), value) for row in rows if (value := other(row)) is not None]
    colours, markers = _colours(rows), _markers(rows)
    for row, bits, value in places:
        marker = markers.get(_percent(row), _MARKERS[0]) if front.by_budget else _MARKERS[0]
        axes.plot(bits, value, color=colours[row.family], marker=marker, linestyle="none")
    best = sorted({(bits, value) for row, bits, value in places if name in row.fronts})
    axes.plot(*zip(*best, strict=True), **_FRONT_STYLE)
    # Of a codec's points the one that stands highest is named.
    highest = sorted(places, key=lambda place: place[2])
    named = {row.codec: (bits, value) for row, bits, value in highest if name in row.fronts}
    for codec, place in named.items():
        # Slanted, so that neighbours stay legible.
        axes.annotate(
            codec, place, xytext=(5, 7), textcoords="offset points", fontsize=8, rotation=40
        )
    if name == "divergence":
        axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    elif front.by_budget:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: formats.number(value, 2))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    # Room for the slanted names above the highest points.
    axes.margins(y=0.2)
    axes.set_xlabel(bits_label)
    axes.set_ylabel(other_label)
    axes.set_title(front.of)


def _explain(axes: Axes, rows: Sequence[Row]) -> None:
    """The legend of all panels, beside one of them."""
    for family, colour in _colours(rows).items():
        axes.plot([], [], color=colour, marker="s", linestyle="none", label=family)
    for budget, marker in _markers(rows).items():
        axes.plot(
            [],
            [],
            color="none",
            markeredgecolor=BOUND_COLOUR,
            marker=marker,
            linestyle="none",
            label=f"{budget} % kept decoded",
        )
    axes.plot([], [], label="Pareto front", **_FRONT_STYLE)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """By codec."""
    families = dict.fromkeys(row.family for row in rows)
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(families)}


def _markers(rows: Sequence[Row]) -> dict[int, str]:
    """By budget of the codecs that decode anything."""
    budgets = sorted({_percent(row) for row in rows if row.family != "bf16"})
    return {budget: _MARKERS[index % len(_MARKERS)] for index, budget in enumerate(budgets)}


def _percent(row: Row) -> int:
    # Budgets are whole pages, so a share is a little below the one asked for.
    return round(100 * row.budget_fraction)
