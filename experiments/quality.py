"""What lossy codecs cost in quality: perplexity, and divergence from the bf16 model.

python -m experiments.quality
python -m experiments.quality --peers --out=experiments/records/cpu/quality.json

Measures the embedded model, on the held-out modules of the running Python's library, stored by
`ecsq` at several rates and by quantisers that round to the nearest. Calibrated rows feed errors
back as inputs on the training modules say.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from codecjax.errors import UserError
from codecjax.io.huggingface import HuggingFaceFolder, read_folder
from codecjax.models.config import LlamaConfig
from codecjax.models.llama import forward
from codecjax.models.parameters import to_tree
from codecjax.tiles import check_tile
from experiments import cli, environment, formats
from experiments.bits_per_byte import token_ids, windows
from experiments.calibration_text import importance_of, training_tokens
from experiments.quality_candidates import Candidate, rounded, stored_by_ecsq
from experiments.records import write_json
from experiments.round_to_nearest import BASELINES, PEERS, Rounded
from experiments.stdlib_corpus import read_corpus
from experiments.train_embedded import separator_of

# Windows of one evaluation batch.
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Quality:
    """How a model predicts texts, beside the bf16 model.

    Attributes:
      perplexity: exp of the mean negative log-probability of a token.
      bits_per_byte: bits that the texts need, per byte of their UTF-8.
      divergence: mean KL(bf16 || model) of the predictions, in nats a token.
      agreement: share of tokens at which both models' likeliest token is the same.
      tokens: how many were predicted.
    """

    perplexity: float
    bits_per_byte: float
    divergence: float
    agreement: float
    tokens: int


@functools.partial(jax.jit, static_argnames=("config",))
def _log_probabilities(
    config: LlamaConfig, tree: Mapping[str, Any], tokens: jax.Array
) -> jax.Array:
    return jax.nn.log_softmax(forward(tree, tokens[:, :-1], config=config))


@jax.jit
def _sums(model: jax.Array, bf16: jax.Array, tokens: jax.Array, counts: jax.Array) -> jax.Array:
    """float32[3]: sums over the counted tokens of what `Quality` has the means of."""
    chosen = jnp.take_along_axis(model, tokens[:, 1:, None], axis=-1)[..., 0]
    divergence = jnp.sum(jnp.exp(bf16) * (bf16 - model), axis=-1)
    same = jnp.argmax(model, axis=-1) == jnp.argmax(bf16, axis=-1)
    each = jnp.stack([-chosen, divergence, same.astype(jnp.float32)])
    return jnp.sum(jnp.where(counts, each, 0.0), axis=(1, 2))


def measure(
    folder: HuggingFaceFolder,
    models: Mapping[str, Mapping[str, jax.Array]],
    texts: Mapping[str, str],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Quality]:
    """Compares models of other weights with the bf16 model of a folder, by name.

    Each text is predicted from its beginning with windows of the model's whole context, in
    float32.

    Args:
      folder: the bf16 model, with a tokenizer that the embedded model's program trained.
      models: by name, the weights that differ from the folder's, by Hugging Face tensor name.
      texts: by name.
      say: told of progress.
    """
    if folder.tokenizer is None:
        raise UserError("the model has no tokenizer.json: texts cannot be read without it")
    separator = separator_of(folder.tokenizer)
    config = folder.config
    parts = [
        windows(token_ids(folder.tokenizer, [text], separator), config.context)
        for text in texts.values()
    ]
    padding = -sum(len(tokens) for tokens, _ in parts) % _BATCH
    tokens, counts = (
        np.pad(np.concatenate(each), ((0, padding), (0, 0))) for each in zip(*parts, strict=True)
    )
    weights = {name: jnp.asarray(weight) for name, weight in folder.weights.items()}
    trees = {name: to_tree(config, {**weights, **other}) for name, other in models.items()}
    bf16 = to_tree(config, weights)
    totals = {name: np.zeros(3) for name in models}
    for start in range(0, len(tokens), _BATCH):
        say(f"predicts windows {start} to {start + _BATCH} of {len(tokens)}")
        batch = slice(start, start + _BATCH)
        reference = _log_probabilities(config, bf16, tokens[batch])
        for name, tree in trees.items():
            found = _log_probabilities(config, tree, tokens[batch])
            totals[name] += np.asarray(_sums(found, reference, tokens[batch], counts[batch]))
    number = int(counts.sum())
    size = sum(len(text.encode()) for text in texts.values())
    return {
        name: Quality(
            perplexity=math.exp(nats / number),
            bits_per_byte=nats / math.log(2) / size,
            divergence=divergence / number,
            agreement=same / number,
            tokens=number,
        )
        for name, (nats, divergence, same) in totals.items()
    }


def rows_of(
    folder: HuggingFaceFolder,
    rates: Sequence[float],
    baselines: Mapping[str, Callable[[jax.Array], Rounded]],
    tile: tuple[int, int],
    texts: Mapping[str, str],
    say: Callable[[str], None] = lambda text: None,
    calibrated_rates: Sequence[float] = (),
    calibration: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """One record for each way to store the model, bf16 first.

    Args:
      folder: the bf16 model.
      rates: of `ecsq`.
      baselines: quantisers of one matrix, by name.
      tile: (rows, columns).
      texts: to predict, by name.
      say: told of progress.
      calibrated_rates: of `ecsq` that is calibrated on `calibration`.
      calibration: int32[N, S], tokens of other texts.
    """
    candidates: dict[str, Candidate] = {}
    for name, quantise in baselines.items():
        say(f"quantises by {name}")
        candidates[name] = rounded(folder, quantise)
    for rate in rates:
        say(f"encodes by ecsq at {rate:g} bits a weight")
        candidates[f"ecsq {rate:g}"] = stored_by_ecsq(folder, rate, tile)
    if calibration is not None:
        say(f"runs the model on {calibration.size} tokens")
        importance = importance_of(folder, calibration)
        for rate in calibrated_rates:
            say(f"encodes by ecsq at {rate:g} bits a weight, calibrated")
            name = f"ecsq {rate:g}, calibrated"
            candidates[name] = stored_by_ecsq(folder, rate, tile, importance)
    models: dict[str, Mapping[str, jax.Array]] = {"bf16": {}}
    models |= {name: each.weights for name, each in candidates.items()}
    found = measure(folder, models, texts, say)
    rows = []
    for name, quality in found.items():
        stored = candidates[name].distortion if name in candidates else None
        row: dict[str, Any] = {"name": name, "bits_per_weight": 16.0, "mse": 0.0}
        if stored is not None:
            row |= {**dataclasses.asdict(stored), "gap_bits": stored.gap_bits}
        rows.append({**row, **dataclasses.asdict(quality)})
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """The records as people read them."""
    shown = Table(title="Quality", title_justify="left")
    headings = {
        "stored as": "left",
        "bits/weight": "right",
        "SNR, dB": "right",
        "Gaussian bound, bits": "right",
        "gap, bits": "right",
        "perplexity": "right",
        "KL, nats/token": "right",
        "agreement": "right",
    }
    for heading, side in headings.items():
        shown.add_column(heading, justify="left" if side == "left" else "right")
    for row in rows:
        shown.add_row(
            row["name"],
            formats.number(row["bits_per_weight"], 4),
            *(
                "" if row.get(key) is None else formats.number(row[key], 4)
                for key in ("signal_to_noise_db", "gaussian_bound_bits", "gap_bits")
            ),
            formats.number(row["perplexity"], 5),
            formats.number(row["divergence"], 3),
            formats.percent(row["agreement"]),
        )
    return shown


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: give --out=FILE")
    values = flags.FLAGS
    rates, calibrated_rates = (_numbers(name) for name in ("rates", "calibrated_rates"))
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    corpus = read_corpus()
    unknown = sorted(set(values.modules) - set(corpus.held_out))
    if unknown:
        raise UserError(
            f"module {unknown[0]!r} was not held out: choose from {', '.join(corpus.held_out)}"
        )
    chosen = values.modules or list(corpus.held_out)
    texts = {name: corpus.held_out[name] for name in chosen}
    baselines = {**BASELINES, **PEERS} if values.peers else BASELINES
    tile = check_tile((values.tile_rows, values.tile_columns))
    folder = read_folder(values.model)
    calibration = training_tokens(corpus, folder) if calibrated_rates else None
    rows = rows_of(folder, rates, baselines, tile, texts, say, calibrated_rates, calibration)
    record = {
        "environment": environment.describe({"decode": "xla"}),
        "qwix": environment.package_version("qwix") if values.peers else None,
        "model": values.model,
        "tile": tile,
        "texts": {"modules": chosen, "bytes": sum(len(text.encode()) for text in texts.values())},
        "calibration_tokens": 0 if calibration is None else calibration.size,
        "rows": rows,
    }
    write_json(Path(values.out), record)
    console.print(table(rows))
    say(f"record: {values.out}")
    return 0


def _numbers(flag: str) -> list[float]:
    given = flags.FLAGS[flag].value
    try:
        return [float(each) for each in given]
    except ValueError as error:
        raise UserError(f"--{flag} {given} are no numbers: give bits a weight") from error


def define_flags() -> None:
    flags.DEFINE_string(
        "model", "experiments/embedded_model", "Hugging Face folder that train_embedded made."
    )
    flags.DEFINE_list("rates", ["2", "3", "4", "4.125", "4.25", "5", "6", "7", "8"], "Of ecsq.")
    flags.DEFINE_list(
        "calibrated_rates", ["2", "3", "4", "8"], "Of ecsq, calibrated on training texts."
    )
    flags.DEFINE_bool("peers", False, "Also measure what qwix makes of the weights.")
    flags.DEFINE_list("modules", [], "Held-out modules to predict; all where it is empty.")
    # Its key and value matrices have 128 rows, which this tile does not pad.
    flags.DEFINE_integer("tile_rows", 128, "Rows of a tile, a multiple of 64.")
    flags.DEFINE_integer("tile_columns", 256, "Columns of a tile, a multiple of 128.")
    flags.DEFINE_string("out", "runs/quality.json", "File for the record.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
