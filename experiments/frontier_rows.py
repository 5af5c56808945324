"""One row a point of a codec frontier, and which rows are on which Pareto front."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.pareto import on_front
from experiments.quality import Quality


@dataclasses.dataclass(frozen=True)
class Row:
    """What a point costs and gives.

    Attributes:
      name: of the point.
      codec: label of the codec and its options.
      family: name of the codec.
      lossy: whether decoding gives other weights than were encoded.
      budget_fraction: of all decoded weights, how much the cache may hold.
      stored_bits: bits a weight of the matrices as they are stored, everything included.
      held_bits: bits a weight of all weights and the cache's pages, in device memory.
      tokens_per_second: after the first token.
      bit_equal: whether all logits have the bits of bf16's; None where that was not checked.
      perplexity, divergence, agreement: on held-out texts, see `experiments.quality.Quality`;
        None where they were not measured.
      tokens: of the texts, that were predicted.
      fronts: names of the fronts that the point is on, see `FRONTS`.
    """

    name: str
    codec: str
    family: str
    lossy: bool
    budget_fraction: float
    stored_bits: float
    held_bits: float
    tokens_per_second: float
    bit_equal: bool | None
    perplexity: float | None = None
    divergence: float | None = None
    agreement: float | None = None
    tokens: int | None = None
    fronts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Front:
    """A pair of figures that cannot both be had.

    Attributes:
      of: what it trades, in words.
      bits: figure to be small, in bits a weight.
      other: figure that is to be small too; None where it was not measured.
      by_budget: whether it depends on the budget; how a codec predicts does not.
    """

    of: str
    bits: Callable[[Row], float]
    other: Callable[[Row], float | None]
    by_budget: bool = False


FRONTS: dict[str, Front] = {
    "speed": Front(
        "stored bits against tokens/s",
        lambda row: row.stored_bits,
        lambda row: -row.tokens_per_second,
        by_budget=True,
    ),
    "memory": Front(
        "bits with pages against tokens/s",
        lambda row: row.held_bits,
        lambda row: -row.tokens_per_second,
        by_budget=True,
    ),
    "perplexity": Front(
        "stored bits against perplexity", lambda row: row.stored_bits, lambda row: row.perplexity
    ),
    "divergence": Front(
        "stored bits against divergence", lambda row: row.stored_bits, lambda row: row.divergence
    ),
}


def row_of(codec: str, summary: Mapping[str, Any], quality: Quality | None) -> Row:
    """The row of a finished point that made two tokens or more, on no front yet.

    Args:
      codec: its label.
      summary: of its records.
      quality: of the codec, or None.
    """
    held, parameters = summary["bytes"], summary["model"]["parameters"]
    row = Row(
        name=summary["name"],
        codec=codec,
        family=summary["codec"]["name"],
        lossy=summary["codec"]["lossy"],
        budget_fraction=summary["cache"]["budget_fraction"],
        stored_bits=summary["codec"]["bits_per_weight"],
        held_bits=8 * (held["weights"] + held["pages"]) / parameters,
        tokens_per_second=summary["time"]["tokens_per_second"],
        bit_equal=summary["exact"]["bit_equal"],
    )
    if quality is None:
        return row
    return dataclasses.replace(
        row,
        perplexity=quality.perplexity,
        divergence=quality.divergence,
        agreement=quality.agreement,
        tokens=quality.tokens,
    )


def with_fronts(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with the fronts that it is on."""
    fronts: list[tuple[str, ...]] = [()] * len(rows)
    for name, front in FRONTS.items():
        places = [
            (index, (front.bits(row), other))
            for index, row in enumerate(rows)
            if (other := front.other(row)) is not None
        ]
        marks = on_front([place for _, place in places])
        for (index, _), mark in zip(places, marks, strict=True):
            if mark:
                fronts[index] += (name,)
    return [dataclasses.replace(row, fronts=mine) for row, mine in zip(rows, fronts, strict=True)]
