"""The picture of a codec frontier: bits a weight against speed and quality, fronts marked."""

from collections.abc import Callable, Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import formats
from experiments.frontier_rows import FRONTS, Row
from experiments.plots import BOUND_COLOUR, STYLE, png

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9")
_MARKERS = "os^D*vPX"
_STORED = "stored bits a weight"
_SPEED = "tokens per second"


def draw(rows: Sequence[Row]) -> bytes:
    """A PNG with a panel for each front that any row is on; at least one row."""
    with plt.rc_context(STYLE):
        return png(_draw(rows))


def _draw(rows: Sequence[Row]) -> Figure:
    panels: dict[str, tuple[str, str, Callable[[Row], float], Callable[[Row], float | None]]] = {
        "speed": (_STORED, _SPEED, lambda row: row.stored_bits, lambda row: row.tokens_per_second),
        "memory": (
            "bits a weight in device memory, pages included",
            _SPEED,
            lambda row: row.held_bits,
            lambda row: row.tokens_per_second,
        ),
        "quality": (
            _STORED,
            "perplexity on held-out texts",
            lambda row: row.stored_bits,
            lambda row: row.perplexity,
        ),
    }
    shown = [name for name in FRONTS if any(name in row.fronts for row in rows)]
    figure, every = plt.subplots(1, len(shown), figsize=(5.5 * len(shown), 4.8), squeeze=False)
    for axes, name in zip(every[0], shown, strict=True):
        _draw_panel(axes, name, rows, *panels[name])
    every[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    return figure


def _draw_panel(
    axes: Axes,
    name: str,
    rows: Sequence[Row],
    bits_label: str,
    other_label: str,
    bits: Callable[[Row], float],
    other: Callable[[Row], float | None],
) -> None:
    families = list(dict.fromkeys(row.family for row in rows))
    budgets = sorted({_percent(row) for row in rows if row.family != "bf16"})
    # One codec predicts the same whatever its budget.
    by_budget = name != "quality"
    for index, family in enumerate(families):
        colour = _COLOURS[index % len(_COLOURS)]
        for number, budget in enumerate(budgets or [0.0]):
            mine = [row for row in rows if row.family == family and _percent(row) == budget]
            axes.plot(
                [bits(row) for row in mine],
                [_drawn(other(row)) for row in mine],
                color=colour,
                marker=_MARKERS[number % len(_MARKERS)] if by_budget else _MARKERS[0],
                linestyle="none",
            )
        axes.plot([], [], color=colour, marker="s", linestyle="none", label=family)
    if by_budget or len(budgets) > 1:
        for number, budget in enumerate(budgets):
            axes.plot(
                [],
                [],
                color="none",
                markeredgecolor=BOUND_COLOUR,
                marker=_MARKERS[number % len(_MARKERS)],
                linestyle="none",
                label=f"{budget:g} % kept decoded",
            )
    front = sorted({(bits(row), _drawn(other(row))) for row in rows if name in row.fronts})
    axes.plot(
        [place for place, _ in front],
        [value for _, value in front],
        color=BOUND_COLOUR,
        linestyle=":",
        marker="o",
        markersize=13,
        markerfacecolor="none",
        label="Pareto front",
    )
    _name_codecs(axes, name, rows, bits, other)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: formats.number(value))
    axes.yaxis.set_minor_formatter(lambda value, _: formats.number(value))
    axes.set_xlabel(bits_label)
    axes.set_ylabel(other_label)
    axes.set_title(FRONTS[name].of)


def _name_codecs(
    axes: Axes,
    name: str,
    rows: Sequence[Row],
    bits: Callable[[Row], float],
    other: Callable[[Row], float | None],
) -> None:
    """Writes the codec beside one point of the front for each codec that is on it."""
    named: set[str] = set()
    for row in rows:
        value = other(row)
        if name not in row.fronts or value is None or row.codec in named:
            continue
        named.add(row.codec)
        axes.annotate(
            row.codec,
            (bits(row), value),
            xytext=(7, 7),
            textcoords="offset points",
            fontsize=8,
        )


def _percent(row: Row) -> float:
    # Budgets are whole pages, so a share is a little below the one asked for.
    return float(round(100 * row.budget_fraction))


def _drawn(value: float | None) -> float:
    return float("nan") if value is None else value
