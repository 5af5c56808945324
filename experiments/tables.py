"""The tables of a report: which columns there are and what a finished point shows in each."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from experiments import formats
from experiments.exactness import is_inexact
from experiments.records import PointRecords

Summary = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: its heading, what it shows of a summary, and whether it is text."""

    heading: str
    show: Callable[[Summary], str]
    text: bool = False


@dataclasses.dataclass(frozen=True)
class ReportTable:
    title: str
    lead: str
    columns: tuple[Column, ...]


def baseline_of(summary: Summary, points: Sequence[PointRecords]) -> Summary | None:
    """The finished bf16 point under the same implementation, if the sweep has one."""
    for point in points:
        other = point.summary
        if (
            point.finished
            and other["codec"]["name"] == "bf16"
            and other["implementations"] == summary["implementations"]
        ):
            return other
    return None


def speed_ratio(summary: Summary, points: Sequence[PointRecords]) -> float | None:
    """Tokens a second as a multiple of the bf16 point's under the same implementation."""
    baseline = baseline_of(summary, points)
    if baseline is None:
        return None
    own, its = (each["time"]["tokens_per_second"] for each in (summary, baseline))
    return own / its if own is not None and its else None


def _baselines(points: Sequence[PointRecords]) -> list[Summary]:
    return [
        point.summary
        for point in points
        if point.finished
        and point.summary["codec"]["name"] == "bf16"
        and point.summary["time"]["tokens_per_second"] is not None
    ]


def fastest_ratio(summary: Summary, points: Sequence[PointRecords]) -> float | None:
    """Tokens a second as a multiple of the fastest bf16 point's, whatever ran there."""
    speeds = [each["time"]["tokens_per_second"] for each in _baselines(points)]
    own = summary["time"]["tokens_per_second"]
    return own / max(speeds) if own is not None and speeds else None


def has_rivals(points: Sequence[PointRecords]) -> bool:
    """Whether bf16 ran under several implementations."""
    return len({tuple(each["implementations"].items()) for each in _baselines(points)}) > 1


def _over_bound(summary: Summary) -> float | None:
    bound, own = summary["bound"]["seconds_per_token"], summary["time"]["seconds_per_token"]
    return own / bound if bound and own is not None else None


def _budget(summary: Summary) -> str:
    cache = summary["cache"]
    return f"{formats.size(cache['budget_bytes'])} ({formats.percent(cache['budget_fraction'])})"


def _policy(summary: Summary) -> str:
    return str(summary["cache"]["policy"]) if summary["tiles"]["cacheable"] else formats.MISSING


def _hits(rate: str) -> Callable[[Summary], str]:
    return lambda summary: formats.percent(summary["hits"][rate])


def _optimum(rate: str) -> Callable[[Summary], str]:
    return lambda summary: formats.percent(summary["bound"][rate])


def _same(summary: Summary, what: str, lossy: str) -> str:
    """A comparison with bf16; `lossy` where it fails because of a lossy codec: no mistake."""
    same = summary["exact"][what]
    return lossy if same is False and not is_inexact(summary) else formats.yes_no(same)


def _bit_equal(summary: Summary) -> str:
    return _same(summary, "bit_equal", "lossy")


def _implementations(summary: Summary) -> str:
    ran = summary["implementations"]
    if len(set(ran.values())) == 1:
        return f"{next(iter(ran.values()))} (all ops)"
    return ", ".join(f"{op}: {name}" for op, name in ran.items())


def report_tables(points: Sequence[PointRecords]) -> list[ReportTable]:
    """The tables of `report.html`; every one starts with the point's name."""
    name = Column("point", lambda s: s["name"], text=True)
    fastest = Column("against fastest bf16", lambda s: formats.factor(fastest_ratio(s, points)))
    return [
        ReportTable(
            "Speed",
            "Tokens per second after the first token, and beside it the time that reading "
            "the bytes alone would take on this device.",
            (
                name,
                Column("tokens/s", lambda s: formats.number(s["time"]["tokens_per_second"])),
                Column("against bf16", lambda s: formats.factor(speed_ratio(s, points))),
                *((fastest,) if has_rivals(points) else ()),
                Column(
                    "seconds per token", lambda s: formats.seconds(s["time"]["seconds_per_token"])
                ),
                Column(
                    "bound: seconds per token",
                    lambda s: formats.seconds(s["bound"]["seconds_per_token"]),
                ),
                Column("measured / bound", lambda s: formats.factor(_over_bound(s))),
                Column("first token", lambda s: formats.seconds(s["time"]["first_token_seconds"])),
                Column(
                    "decode time per tile",
                    lambda s: formats.seconds(s["time"]["decode_seconds_per_tile"]),
                ),
                Column("compile (once)", lambda s: formats.seconds(s["time"]["compile_seconds"])),
            ),
        ),
        ReportTable(
            "Device memory",
            "What the model keeps on the device while it generates.",
            (
                name,
                Column("bits/weight", lambda s: formats.number(s["codec"]["bits_per_weight"], 4)),
                Column("weights", lambda s: formats.size(s["bytes"]["weights"])),
                Column("pages", lambda s: formats.size(s["bytes"]["pages"])),
                Column("KV cache", lambda s: formats.size(s["bytes"]["kv"])),
                Column("total", lambda s: formats.size(s["bytes"]["total"])),
                Column("measured on the device", lambda s: formats.size(s["bytes"]["measured"])),
                Column(
                    "weights + pages against bf16",
                    lambda s: formats.percent(
                        (s["bytes"]["weights"] + s["bytes"]["pages"]) / s["bytes"]["bf16_weights"]
                    ),
                ),
            ),
        ),
        ReportTable(
            "Cache",
            "Hit rates over all steps, the first one (which finds the cache empty) included. "
            "Beside each the offline optimum: the best that any policy could do with the same "
            "budget, even one that knows the future.",
            (
                name,
                Column("policy", _policy, text=True),
                Column("budget", _budget),
                Column(
                    "pages held / pool",
                    lambda s: f"{s['cache']['pages_held']:,} / {s['cache']['pages']:,}",
                ),
                Column("object hits", _hits("object")),
                Column("optimum", _optimum("object")),
                Column("byte hits", _hits("byte")),
                Column("optimum", _optimum("byte")),
                Column("cost hits", _hits("cost")),
                Column("optimum", _optimum("cost")),
                Column(
                    "tiles decoded in the last step",
                    lambda s: f"{s['tiles']['decoded_last_step']:,} of {s['tiles']['cacheable']:,}",
                ),
            ),
        ),
        ReportTable(
            "Exactness and provenance",
            "Whether the answers are those of plain bf16, to the last bit, or how far from it a "
            "lossy codec takes them, and what computed them.",
            (
                name,
                Column("bit-equal logits", _bit_equal),
                Column(
                    "largest difference",
                    lambda s: formats.number(s["exact"]["max_abs_difference"]),
                ),
                # Records from before there were lossy codecs have none.
                Column(
                    "divergence, nats/token",
                    lambda s: formats.number(s["exact"].get("divergence")),
                ),
                Column("same tokens", lambda s: _same(s, "tokens_equal", "no")),
                Column("logits compared", lambda s: f"{s['exact']['logits']:,}"),
                Column("implementation", _implementations, text=True),
                Column("device", lambda s: s["device"], text=True),
            ),
        ),
    ]


def terminal_table(points: Sequence[PointRecords]) -> Table:
    """The table that a run prints at its end: the main figures of each point."""
    table = Table(title="Results", title_justify="left")
    headings = (
        ("point", "left"),
        ("tokens/s", "right"),
        ("against\nbf16", "right"),
        ("seconds per token\n(bound)", "right"),
        ("first\ntoken", "right"),
        ("bits/\nweight", "right"),
        ("device\nmemory", "right"),
        ("object hits\n(optimum)", "right"),
        ("byte hits\n(optimum)", "right"),
        ("cost hits\n(optimum)", "right"),
        ("bit-\nequal", "right"),
    )
    for heading, justify in headings:
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for point in points:
        summary = point.summary
        if not point.finished:
            table.add_row(summary["name"], "failed", *[formats.MISSING] * (len(headings) - 2))
            continue
        time, bound, hits = summary["time"], summary["bound"], summary["hits"]
        table.add_row(
            summary["name"],
            formats.number(time["tokens_per_second"]),
            formats.factor(speed_ratio(summary, points)),
            f"{formats.seconds(time['seconds_per_token'])}\n"
            f"({formats.seconds(bound['seconds_per_token'])})",
            formats.seconds(time["first_token_seconds"]),
            formats.number(summary["codec"]["bits_per_weight"], 4),
            formats.size(summary["bytes"]["total"]),
            *[
                f"{formats.percent(hits[rate])}\n({formats.percent(bound[rate])})"
                for rate in ("object", "byte", "cost")
            ],
            _bit_equal(summary),
        )
    return table
