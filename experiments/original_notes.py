"""The notes that began this project, line by line, each with what was measured instead.

They were about TinyLlama with a cache that holds 20 of its 155 matrices decoded.
"""

import dataclasses
from collections.abc import Sequence

from codecjax.cache import cyclic_trace, simulate
from experiments import formats
from experiments.records import PointRecords

NOTED_HELD = 20
HOPED_HIT_RATE = 0.85
NOTED_TOKENS = 5


@dataclasses.dataclass(frozen=True)
class NoteLine:
    """One line of the notes.

    Attributes:
      question: what it is about.
      noted: what the notes measured, or nothing.
      hoped: what they hoped for.
      measured: the figure from the records.
      remark: how to read it.
    """

    question: str
    noted: str
    hoped: str
    measured: str
    remark: str


def warm_rate(point: PointRecords) -> float | None:
    """Share of decoded bytes found resident after the first step, which finds none."""
    later = point.steps[1:]
    total = sum(step["bytes"] for step in later)
    return sum(step["byte_hits"] for step in later) / total if total else None


def original_notes(points: Sequence[PointRecords]) -> list[NoteLine]:
    """The lines that the finished points of a sweep can answer."""
    cached = [p for p in points if p.finished and p.summary["codec"]["name"] != "bf16"]
    if not cached:
        return []
    matrices = int(cached[0].summary["model"]["matrices"])
    noted = [p for p in cached if _holds(p, NOTED_HELD / matrices)]
    # The best static choice stands for the cache at that size, whatever else was tried.
    chosen = next((p for p in noted if p.summary["cache"]["policy"] == "pinned"), None)
    lines = [_time_per_tile(chosen or cached[0])]
    if chosen is not None:
        others = [p for p in noted if p is not chosen]
        lines.append(_hit_rate(chosen, others, matrices))
    lines.append(_budget_for_the_hope(cached, matrices))
    if chosen is not None:
        lines += _seconds(chosen)
    return lines


def _holds(point: PointRecords, fraction: float) -> bool:
    # Budgets are whole pages, so the recorded share is a little below the one asked for.
    return abs(point.summary["cache"]["budget_fraction"] - fraction) < 1e-3


def _time_per_tile(point: PointRecords) -> NoteLine:
    measured = point.summary["time"]["decode_seconds_per_tile"]
    return NoteLine(
        "Time to decode one tile",
        "295 ms",
        "1 to 5 ms",
        formats.seconds(measured),
        "Seconds to decode every matrix, divided by the number of tiles: the tiles of a matrix "
        "decode side by side, so this is not how long a single one would take alone.",
    )


def _hit_rate(chosen: PointRecords, others: Sequence[PointRecords], matrices: int) -> NoteLine:
    steps = len(chosen.steps)
    trace = cyclic_trace(matrices, steps)
    equal = [1] * matrices
    possible = {
        policy: simulate(policy, trace, equal, None, NOTED_HELD).hits
        for policy in ("min_bypass", "belady", "lru")
    }
    # The first step finds an empty cache whatever the policy, so it is left out.
    warm = {
        policy: formats.percent(hits / (matrices * (steps - 1)) if steps > 1 else None)
        for policy, hits in possible.items()
    }
    measured = [f"{formats.percent(warm_rate(chosen))} of bytes ({_policy(chosen)})"]
    measured += [f"{formats.percent(warm_rate(point))} ({_policy(point)})" for point in others]
    return NoteLine(
        f"Hit rate with {NOTED_HELD} of {matrices} matrices decoded, after the first step",
        "",
        formats.percent(HOPED_HIT_RATE),
        "; ".join(measured),
        f"Every step uses all {matrices} matrices, so of matrices of one size at most "
        f"{NOTED_HELD} in {matrices} can be found: {warm['min_bypass']} where a miss may stay "
        f"out of the cache, {warm['belady']} where each miss must enter it, {warm['lru']} "
        "with LRU, which always throws out the matrix that is needed next. No policy gives "
        f"{formats.percent(HOPED_HIT_RATE)}.",
    )


def _budget_for_the_hope(cached: Sequence[PointRecords], matrices: int) -> NoteLine:
    question = f"Which budget gives {formats.percent(HOPED_HIT_RATE)}"
    hoped = f"{NOTED_HELD} of {matrices} matrices"
    # Whole objects must fit into the budget, so a point may miss the goal by a part of one.
    reached = [p for p in cached if (warm_rate(p) or 0.0) >= HOPED_HIT_RATE - 5e-3]
    if not reached:
        return NoteLine(question, "", hoped, formats.MISSING, "No point reached it.")
    best = min(reached, key=lambda point: point.summary["cache"]["budget_bytes"])
    cache = best.summary["cache"]
    return NoteLine(
        question,
        "",
        hoped,
        f"{formats.percent(cache['budget_fraction'])} of the decoded weights, "
        f"{formats.size(cache['budget_bytes'])}",
        f"The smallest budget of this sweep that reaches it, measured "
        f"{formats.percent(warm_rate(best))} of bytes after the first step. Compressed weights "
        f"and pages together then take {formats.size(_held(best))}; the weights in plain bf16 "
        f"take {formats.size(best.summary['bytes']['bf16_weights'])}.",
    )


def _held(point: PointRecords) -> float:
    return float(point.summary["bytes"]["weights"] + point.summary["bytes"]["pages"])


def _seconds(chosen: PointRecords) -> list[NoteLine]:
    first = chosen.steps[:NOTED_TOKENS]
    total = sum(step["seconds"] for step in first) if len(first) == NOTED_TOKENS else None
    return [
        NoteLine(
            "Seconds per token",
            "",
            "5 to 7 s",
            formats.seconds(chosen.summary["time"]["seconds_per_token"]),
            f"Point {chosen.summary['name']!r}, after the first token.",
        ),
        NoteLine(
            f"{NOTED_TOKENS} tokens in total",
            "",
            "35 s",
            formats.seconds(total),
            f"The first {NOTED_TOKENS} steps of the same point, prompt included; compiling, "
            f"which happens once, took {formats.seconds(chosen.summary['time']['compile_seconds'])}"
            " more.",
        ),
    ]


def _policy(point: PointRecords) -> str:
    return str(point.summary["cache"]["policy"])
