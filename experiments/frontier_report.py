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
    items = [*_exactness(rows), *_quality(rows)]
    for name, front in FRONTS.items():
        on_it = sorted((row for row in rows if name in row.fronts), key=front.bits)
        # One codec predicts the same whatever its budget.
        labels = [row.codec if name == "quality" else row.name for row in on_it]
        if labels:
            items.append(f"Front of {front.of}: {'; '.join(dict.fromkeys(labels))}.")
    if rows and set(record["environment"]["implementations"].values()) == {"xla"}:
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


def _quality(rows: Sequence[Row]) -> list[str]:
    by_codec = {row.codec: row for row in rows if row.perplexity is not None}
    plain = next((row for row in by_codec.values() if row.family == "bf16"), None)
    if plain is None:
        return []
    lossless = [row for row in by_codec.values() if not row.lossy and row is not plain]
    same = sum(1 for row in lossless if (row.perplexity, row.divergence) == (plain.perplexity, 0.0))
    items = []
    if lossless:
        items.append(
            f"{same} of {len(lossless)} other lossless codecs have the perplexity of bf16, "
            f"{formats.number(plain.perplexity, 6)}, to the last bit, and no divergence; measured "
            f"on {plain.tokens:,} tokens of held-out texts as every codec's."
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
