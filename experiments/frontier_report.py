"""The Markdown page of a codec frontier, and what its figures say in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import formats
from experiments.frontier_rows import FRONTS, Row

PICTURE = "frontier.png"


def findings(rows: Sequence[Row], record: Mapping[str, Any]) -> list[str]:
    """Sentences about the rows, every one of them computed, and the points that are missing.

    Args:
      rows: of the finished points.
      record: with the reasons of points "left_out" and "failed", by name.
    """
    only_xla = set(record["environment"]["implementations"].values()) == {"xla"}
    items = [*_exactness(rows), *_quality(rows), *_all_kept(rows, only_xla)]
    for name, front in FRONTS.items():
        on_it = sorted((row for row in rows if name in row.fronts), key=front.bits)
        labels = [row.name if front.by_budget else row.codec for row in on_it]
        if labels:
            items.append(f"Front of {front.of}: {'; '.join(dict.fromkeys(labels))}.")
    if rows and only_xla:
        items.append(
            "The XLA reference ran, which decodes a whole matrix before it multiplies: which "
            "codec is fast in the kernels is measured on a GPU."
        )
    items += [f"Left out: {name}: {why}." for name, why in record["left_out"].items()]
    items += [f"Failed: {name}: {why}." for name, why in record["failed"].items()]
    return items


def _exactness(rows: Sequence[Row]) -> list[str]:
    checked = [row for row in rows if not row.lossy and row.bit_equal is not None]
    if not checked:
        return []
    equal = sum(1 for row in checked if row.bit_equal)
    return [
        f"{equal} of {len(checked)} points of lossless codecs compute logits bit-equal to bf16."
    ]


def _all_kept(rows: Sequence[Row], only_xla: bool) -> list[str]:
    """How far apart the speeds are of points that decode nothing, and why."""
    kept = [
        row.tokens_per_second for row in rows if row.family != "bf16" and row.budget_fraction >= 1
    ]
    if len(kept) < 2:
        return []
    made = f"{len(kept)} points made {formats.number(min(kept))} to {formats.number(max(kept))}"
    if not only_xla:
        return [
            "With everything kept no later step decodes anything, yet each codec's own kernels "
            f"read the pages: these {made} tokens/s."
        ]
    return [
        f"With everything kept no later step decodes anything, whatever the codec; yet these "
        f"{made} tokens/s. Speeds that differ by less than {formats.factor(max(kept) / min(kept))} "
        "may do so by chance, and so may a place on a front of speed."
    ]


def _quality(rows: Sequence[Row]) -> list[str]:
    by_codec = {row.codec: (row, row.perplexity) for row in rows if row.perplexity is not None}
    plain = next((found for found in by_codec.values() if found[0].family == "bf16"), None)
    if plain is None:
        return []
    bf16, own = plain
    lossless = [each for each in by_codec.values() if not each[0].lossy and each != plain]
    same = sum(1 for row, perplexity in lossless if (perplexity, row.divergence) == (own, 0.0))
    below = {
        codec: 1 - perplexity / own
        for codec, (row, perplexity) in by_codec.items()
        if row.lossy and perplexity < own
    }
    items = []
    if lossless:
        items.append(
            f"{same} of {len(lossless)} other lossless codecs have the perplexity of bf16, "
            f"{formats.number(own, 6)}, to the last bit, and no divergence; measured on "
            f"{bf16.tokens:,} tokens of held-out texts as every codec's."
        )
    if below:
        shown = ", ".join(f"{codec} (by {100 * share:.2g} %)" for codec, share in below.items())
        items.append(
            f"Lossy and yet below the perplexity of bf16: {shown}. Differences so small have "
            "either sign; divergence tells such codecs apart."
        )
    return items


def report(rows: Sequence[Row], record: Mapping[str, Any]) -> str:
    """The page of rows and the config, environment and missing points that go with them."""
    config, where = record["config"], record["environment"]
    commit = "unknown"
    if where["git"] is not None:
        commit = where["git"]["commit"] + (
            " with uncommitted changes" if where["git"]["dirty"] else ""
        )
    codec = config["codec"]
    lines = [
        f"# {config['report']['title']}",
        "",
        config["report"]["about"],
        "",
        f"Model: {_model(config['model'])}, tiles of {codec['tile_rows']} x "
        f"{codec['tile_columns']}, {config['run']['new_tokens']} tokens generated one at a time. "
        "Stored bits are those of the matrices, tables and side lists included; bits with pages "
        "are those of all weights and the cache, which hold more the more is kept decoded. "
        "Perplexity, and divergence KL(bf16 || stored), are a codec's, whatever the budget.",
        "",
        *(f"- {sentence}" for sentence in findings(rows, record)),
        "",
    ]
    if rows:
        lines += [f"![Fronts of bits against speed and quality]({PICTURE})", "", *_table(rows), ""]
    lines += [
        f"Commit {commit}, jax {where['jax']}, {where['device']}, {where['time_utc']}. Command:",
        "",
        f"    {where['command']}",
    ]
    return "\n".join(lines) + "\n"


def _model(model: Mapping[str, Any]) -> str:
    if model["path"]:
        return str(model["path"])
    return f"{model['shapes']} shapes with random weights (seed {model['seed']})"


def _table(rows: Sequence[Row]) -> list[str]:
    header = (
        "point",
        "stored bits/weight",
        "bits/weight with pages",
        "tokens/s",
        "bit-equal logits",
        "perplexity",
        "KL, nats/token",
        "same likeliest token",
        "on the front of",
    )
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        cells = (
            row.name,
            formats.number(row.stored_bits, 4),
            formats.number(row.held_bits, 4),
            formats.number(row.tokens_per_second),
            "lossy" if row.lossy and row.bit_equal is False else formats.yes_no(row.bit_equal),
            formats.number(row.perplexity, 6),
            formats.number(row.divergence),
            formats.percent(row.agreement),
            ", ".join(row.fronts) or formats.MISSING,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines
