"""What the figures of a sweep say in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import formats
from experiments.records import PointRecords
from experiments.tables import fastest_ratio, has_rivals


def findings(finished: Sequence[PointRecords], failed: Sequence[PointRecords]) -> list[str]:
    """Sentences about the points of a sweep, every one of them computed."""
    items = []
    lossy = [p for p in finished if p.summary["codec"].get("lossy", False)]
    checked = [
        p for p in finished if p.summary["exact"]["bit_equal"] is not None and p not in lossy
    ]
    if checked:
        equal = sum(1 for p in checked if p.summary["exact"]["bit_equal"])
        items.append(
            f"{equal} of {len(checked)} checked points compute logits bit-equal to plain bf16"
            + (" and choose the same tokens." if equal == len(checked) else ".")
        )
    items += [_of_lossy(p.summary) for p in lossy]
    unplanned = [p.summary["name"] for p in finished if not p.summary["tiles"]["as_planned"]]
    if finished:
        items.append(
            "Every step decoded exactly the tiles that its plan said, counted by the kernels."
            if not unplanned
            else "Points that did not decode the tiles that their plans said: "
            + ", ".join(unplanned)
            + "."
        )
    cached = [p for p in finished if p.summary["codec"]["name"] != "bf16"]
    if cached:
        codec, size = cached[0].summary["codec"], cached[0].summary["bytes"]
        items.append(
            f"Codec {codec['name']} stores the matrices in {codec['bits_per_weight']:.2f} bits a "
            f"weight; all weights take {formats.percent(size['weights'] / size['bf16_weights'])} "
            "of their size in bf16." + _left_out(cached[0].summary)
        )
        items += _speeds(cached, finished)
        below = [p.summary["name"] for p in cached if _misses_the_optimum(p)]
        items.append(
            "Every point reaches the offline optimum of its cost hit rate."
            if not below
            else "Below the offline optimum of the cost hit rate: " + ", ".join(below) + "."
        )
    if cached and all(set(p.summary["implementations"].values()) == {"xla"} for p in cached):
        items.append(
            "The XLA reference ran, which shows what a cache saves and what the answers are. "
            "It decodes slowly: how fast the kernels are is measured on a GPU."
        )
    if failed:
        items.append(f"{len(failed)} of {len(finished) + len(failed)} points failed, see below.")
    return items


def _of_lossy(summary: Mapping[str, Any]) -> str:
    """What is said of a point whose codec changes the weights."""
    exact, codec = summary["exact"], summary["codec"]
    said = (
        f"{summary['name']} is lossy: codec {codec['name']} stores other weights, near those of "
        f"bf16, in {codec['bits_per_weight']:.2f} bits each"
    )
    if exact["bit_equal"] is None:
        return f"{said}."
    same = "the same" if exact["tokens_equal"] else "other"
    difference = formats.number(exact["max_abs_difference"])
    divergence = formats.number(exact["divergence"])
    return (
        f"{said}. Its logits differ by up to {difference}, its predictions diverge from those of "
        f"bf16 by {divergence} nats a token, and it chooses {same} tokens."
    )


def _speeds(cached: Sequence[PointRecords], finished: Sequence[PointRecords]) -> list[str]:
    """What is said of speed, always against the fastest bf16 point."""
    timed = [(r, p) for p in cached if (r := fastest_ratio(p.summary, finished)) is not None]
    if not timed:
        return []
    bf16 = "the fastest bf16 point" if has_rivals(finished) else "bf16"
    items = []
    bare = next(((r, p) for r, p in timed if not p.summary["cache"]["pages"]), None)
    if bare is not None:
        size = bare[1].summary["bytes"]
        items.append(
            f"With no weight kept decoded the model runs at {formats.factor(bare[0])} the speed "
            f"of {bf16} and its weights take "
            f"{formats.percent(size['weights'] / size['bf16_weights'])} of their memory."
        )
    ratio, best = max(timed, key=lambda pair: pair[0])
    items.append(
        f"The fastest compressed point is {best.summary['name']!r} with "
        f"{formats.factor(ratio)} the speed of {bf16}."
    )
    return items


def _left_out(summary: dict[str, Any]) -> str:
    matrices = summary["model"]["matrices"]
    plain = matrices - summary["codec"]["compressed_matrices"]
    return f" {plain} of {matrices} matrices, which it would expand, stay in bf16." if plain else ""


def _misses_the_optimum(point: PointRecords) -> bool:
    own, best = point.summary["hits"]["cost"], point.summary["bound"]["cost"]
    return own is not None and best is not None and own < best - 1e-9
