"""What it saves to predict int8 weights from their neighbours: entropy and size, by prediction.

Leaves in the run's folder

    ablation.json   the config, the environment, and one `Row` for each source and prediction
    report.md       the same as a table, and what it says in words
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections.config_dict import ConfigDict
from rich.console import Console

from codecjax.codecs import check_options, encode
from codecjax.codecs.int8_choice import entropy_bits, residual_counts
from codecjax.codecs.int8_prediction import PREDICTIONS
from codecjax.codecs.int8_rans import BEST
from codecjax.codecs.int8_rows import quantise
from codecjax.codecs.window_units import padded_to
from codecjax.errors import UserError
from codecjax.io.huggingface import read_folder
from codecjax.models.parameters import parameters
from codecjax.tiles import TiledMatrix, check_tile
from experiments import environment
from experiments.records import plain, write_json, write_text

KIND = "prediction_ablation"
_SPREAD = 0.02


@dataclasses.dataclass(frozen=True)
class Source:
    """Matrices that are measured together.

    Attributes:
      name: in tables.
      matrices: bf16[OUT, K] by name.
      probability_bits: of their tables.
    """

    name: str
    matrices: Mapping[str, jax.Array]
    probability_bits: int


@dataclasses.dataclass(frozen=True)
class Row:
    """What the matrices of a source cost under one prediction.

    Attributes:
      source: its name.
      prediction: the option.
      matrices, weights: how many.
      row_lengths: the lengths of rows that have a scale, ascending.
      probability_bits: of the tables.
      entropy_bits: zeroth-order entropy of the residuals of each matrix, in bits a weight.
      coded_bits: what the coder made of them, states and starts included, in bits a weight.
      bits_per_weight: of all that is stored.
      saved_bits: of each matrix whose entropy is below that of its values, how much, in bits a
        weight.
      tiles: how many have each prediction.
    """

    source: str
    prediction: str
    matrices: int
    weights: int
    row_lengths: tuple[int, ...]
    probability_bits: int
    entropy_bits: float
    coded_bits: float
    bits_per_weight: float
    saved_bits: dict[str, float]
    tiles: dict[str, int]


@dataclasses.dataclass(frozen=True)
class _Cost:
    """Bits of one matrix, and how many of its tiles have each prediction."""

    entropy: float
    coded: float
    stored: float
    tiles: np.ndarray


def _cost(t: TiledMatrix, counts: np.ndarray) -> _Cost:
    """That of an encoded matrix whose residuals have counts int[PREDICTIONS, T, 256]."""
    prediction = np.asarray(t.arrays["prediction"])
    chosen = counts[prediction, np.arange(prediction.size)]
    coded = sum(t.arrays[name].nbytes for name in ("states", "starts", "stream"))
    tiles = np.bincount(prediction, minlength=len(PREDICTIONS))
    return _Cost(entropy_bits(chosen.sum(axis=0)), 8.0 * coded, 8.0 * t.nbytes, tiles)


def measure(
    source: Source,
    tile: tuple[int, int],
    scale_bits: int,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """One row for each prediction, and one for the best of each tile.

    Args:
      source: of matrices that whole tiles make up, or padding counts as their weights do.
      tile: (rows, columns).
      scale_bits: of the codec.
      say: told of progress.

    Raises:
      UserError: a matrix is so small that its table would expand it.
    """
    choices = (*PREDICTIONS, BEST)
    costs: dict[str, list[_Cost]] = {choice: [] for choice in choices}
    for number, (name, w) in enumerate(source.matrices.items()):
        say(f"{source.name}: matrix {number + 1} of {len(source.matrices)}, {name}")
        values = quantise(padded_to(w, tile), scale_bits)[0]
        counts = np.asarray(residual_counts(values, tile, PREDICTIONS))
        for choice in choices:
            options = {"probability_bits": source.probability_bits, "scale_bits": scale_bits}
            t = encode(w, "int8_rans", tile, prediction=choice, **options)
            if t.is_dense:
                raise UserError(
                    f"{name} of {source.name} is so small that its table would expand it: "
                    "choose fewer probability_bits or larger matrices"
                )
            costs[choice].append(_cost(t, counts))
    weights = sum(w.size for w in source.matrices.values())
    without = [each.entropy for each in costs["none"]]

    def saved(mine: Sequence[_Cost]) -> dict[str, float]:
        differences = zip(source.matrices.items(), without, mine, strict=True)
        every = {name: (before - each.entropy) / w.size for (name, w), before, each in differences}
        return {name: bits for name, bits in every.items() if bits > 0}

    return [
        Row(
            source=source.name,
            prediction=choice,
            matrices=len(source.matrices),
            weights=weights,
            row_lengths=tuple(sorted({w.shape[1] for w in source.matrices.values()})),
            probability_bits=source.probability_bits,
            entropy_bits=sum(each.entropy for each in mine) / weights,
            coded_bits=sum(each.coded for each in mine) / weights,
            bits_per_weight=sum(each.stored for each in mine) / weights,
            saved_bits=saved(mine),
            tiles=dict(
                zip(PREDICTIONS, np.sum([each.tiles for each in mine], 0).tolist(), strict=True)
            ),
        )
        for choice, mine in costs.items()
    ]


def sources(config: ConfigDict) -> Iterator[Source]:
    """The matrices of the model, then random ones; seeded, each made when it is asked for."""
    folder = read_folder(config.model.path)
    projections = [each for each in parameters(folder.config) if each.projection]
    model = {each.name: jnp.asarray(folder.weights[each.huggingface]) for each in projections}
    name = str(config.model.path).rstrip("/").rsplit("/", 1)[-1]
    yield Source(name, model, config.model.probability_bits)
    random, freedom = config.random, config.random.degrees_of_freedom
    for length in random.row_lengths:
        draw = np.random.default_rng(random.seed)
        shape = (random.rows, length)
        gaussian = _SPREAD * draw.normal(size=shape)
        student = _SPREAD * draw.standard_t(freedom, size=shape)
        for name, w in (
            (f"Gaussian, rows of {length:,}", gaussian),
            (f"Student's t({freedom:g}), rows of {length:,}", student),
        ):
            matrix = {f"{shape[0]} x {shape[1]}": jnp.asarray(w, jnp.bfloat16)}
            yield Source(name, matrix, random.probability_bits)


def check(config: ConfigDict) -> tuple[int, int]:
    """The config's tile (rows, columns); UserError where a field is impossible."""
    tile = check_tile((config.codec.tile_rows, config.codec.tile_columns))
    for bits in (config.model.probability_bits, config.random.probability_bits):
        options = {"probability_bits": bits, "scale_bits": config.codec.scale_bits}
        check_options("int8_rans", options)
    random = config.random
    sizes = (random.rows, *random.row_lengths)
    if min(sizes) < 1:
        raise UserError(f"random.rows or random.row_lengths has {min(sizes)}: give 1 or more")
    if not random.degrees_of_freedom > 0:
        raise UserError(
            f"random.degrees_of_freedom {random.degrees_of_freedom} is impossible: "
            "give a number above 0"
        )
    return tile


def findings(rows: Sequence[Row]) -> list[str]:
    """A sentence on each source: whether any prediction pays, and the bits it saves or costs."""
    by_source: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_source.setdefault(row.source, {})[row.prediction] = row
    items = []
    for source, of_source in by_source.items():
        none, best = of_source["none"], of_source[BEST]
        single = min(
            (of_source[each] for each in PREDICTIONS[1:]), key=lambda row: row.entropy_bits
        )
        saved = none.entropy_bits - single.entropy_bits
        tiles = sum(best.tiles.values())
        items.append(
            f"{source}: the best single prediction, `{single.prediction}`, "
            f"{'saves' if saved > 0 else 'costs'} {abs(saved):.3f} bits a weight of entropy and "
            f"is below `none` in {len(single.saved_bits)} of {single.matrices} matrices. Free to "
            f"choose for each tile, the encoder predicts {tiles - best.tiles['none']} of {tiles}"
            + (f", in {', '.join(best.saved_bits)}" if best.saved_bits else "")
            + f"; this saves {none.coded_bits - best.coded_bits:.4f} coded bits a weight."
        )
    return items


def report(rows: Sequence[Row], record: Mapping[str, Any]) -> str:
    """The Markdown page of rows and the config and environment that they were measured in."""
    codec, where = record["config"]["codec"], record["environment"]
    commit = "unknown"
    if where["git"] is not None:
        commit = where["git"]["commit"] + (
            " with uncommitted changes" if where["git"]["dirty"] else ""
        )
    lines = [
        "# Predicting int8 weights from their neighbours",
        "",
        "Weights are int8 with one scale a row, its largest magnitude / 127 "
        f"({'bf16' if codec['scale_bits'] == 16 else 'float32'}); each value is predicted within "
        f"its tile of {codec['tile_rows']} x {codec['tile_columns']} and the residual modulo 256 "
        "is coded. Entropy is of zeroth order, by matrix. Coded bits are the coder's words and "
        "states, by codec `int8_rans`; the last column adds tables and scales, so all of it.",
        "",
        *(f"- {sentence}" for sentence in findings(rows)),
        "",
        "| source | row length | prediction | entropy, bits/weight | against `none` "
        "| coded bits/weight | stored bits/weight | matrices below `none` |",
        "|---|---|---|---|---|---|---|---|",
    ]
    none = {row.source: row for row in rows if row.prediction == "none"}
    for row in rows:
        change = row.entropy_bits - none[row.source].entropy_bits
        cells = (
            row.source,
            ", ".join(f"{length:,}" for length in row.row_lengths),
            f"`{row.prediction}`",
            f"{row.entropy_bits:.4f}",
            f"{change:+.4f}",
            f"{row.coded_bits:.4f}",
            f"{row.bits_per_weight:.4f} (tables of 2^{row.probability_bits})",
            f"{len(row.saved_bits)} of {row.matrices}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Commit {commit}, jax {where['jax']}, {where['device']}, {where['time_utc']}. Command:",
        "",
        f"    {where['command']}",
    ]
    return "\n".join(lines) + "\n"


def run(config: ConfigDict, workdir: Path, console: Console) -> int:
    """Measures what the config asks for and writes the records; returns the exit status.

    Raises:
      UserError: a field of the config is impossible, or the model cannot be read.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    tile = check(config)
    rows = [
        row
        for source in sources(config)
        for row in measure(source, tile, config.codec.scale_bits, say)
    ]
    record = plain(
        {
            "config": config.to_dict(),
            "environment": environment.describe({"encode": "xla"}),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
    )
    write_json(workdir / "ablation.json", record)
    write_text(workdir / "report.md", report(rows, record))
    for sentence in findings(rows):
        say(sentence)
    say(f"{'report':8}{workdir / 'report.md'}")
    say(f"{'record':8}{workdir / 'ablation.json'}")
    return 0
