"""Compresses a Hugging Face folder into a codecjax checkpoint and says what that saved.

python -m experiments.compress --model=experiments/embedded_model --output=runs/embedded.codecjax
python -m experiments.compress --model=FOLDER --output=FOLDER --codec=ecsq --calibration=TEXTFILE
"""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from absl import flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

import codecjax
from codecjax.codecs import CODECS, check_options, check_weighs, distortion, is_lossy, plans
from codecjax.codecs.cast import to_bf16, warn_of_cast
from codecjax.errors import UserError
from codecjax.io.huggingface import read_folder
from codecjax.models.config import LlamaConfig
from codecjax.models.encoding import encode_weights
from codecjax.models.model import Model
from codecjax.models.parameters import parameters, walk
from codecjax.tiles import DEFAULT_TILE, TiledMatrix, check_tile
from experiments import cli, formats
from experiments.calibration_text import importance_of, tokens_of_file
from experiments.progress import make_console


class _Watched(Mapping[str, Any]):
    """A mapping of weights that shows on the console how many of them were taken."""

    def __init__(self, weights: Mapping[str, Any], takes: int, console: Console) -> None:
        self._weights = weights
        self._progress = iter(
            track(range(takes), "encodes tensors", console=console, transient=False)
        )

    def __getitem__(self, name: str) -> Any:
        next(self._progress, None)
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def define_flags() -> None:
    rows, columns = DEFAULT_TILE
    flags.DEFINE_string("model", "", "Hugging Face folder to read.")
    flags.DEFINE_string("output", "", "Checkpoint to write; one that is there is replaced.")
    flags.DEFINE_string("codec", "window", f"How to store the weights: {', '.join(CODECS)}.")
    cli.define_codec_options()
    flags.DEFINE_string(
        "calibration",
        "",
        "Text in UTF-8 that the model should do well on: of codec ecsq, errors then count as they "
        "matter there, and columns make up for the errors of those before. Without where empty.",
    )
    flags.DEFINE_integer("tile_rows", rows, "Rows of a tile, a multiple of 64.")
    flags.DEFINE_integer("tile_columns", columns, "Columns of a tile, a multiple of 128.")


def _takes(config: LlamaConfig, codec: str) -> int:
    """How often weights are asked for while a model is encoded, at least."""
    every = parameters(config)
    return len(every) + (sum(each.projection for each in every) if plans(codec) else 0)


def distortion_line(model: Model, weights: Mapping[str, Any]) -> str:
    """What a lossy codec made of the weights, in words."""
    pairs = (
        (to_bf16(jnp.asarray(weights[each.huggingface]))[0], model.matrices[each.name])
        for each in parameters(model.config)
        if each.projection
    )
    found = distortion.measure(pairs)
    line = f"lossy: mean squared error {formats.number(found.mse)} a weight"
    if found.gap_bits is None or found.signal_to_noise_db is None:
        return line
    return (
        f"{line}, signal to noise {found.signal_to_noise_db:.2f} dB, in "
        f"{found.bits_per_weight:.3f} bits a weight; Gaussian rows need at least "
        f"{found.gaussian_bound_bits:.3f}, so the gap is {found.gap_bits:.3f}"
    )


def size_table(model: Model) -> Table:
    """What each kind of weight takes, as stored and in bf16."""
    table = Table(title="Sizes", title_justify="left")
    for heading in ("weights", "number", "in bf16", "as stored", "bits/weight", "of bf16"):
        table.add_column(heading, justify="left" if heading == "weights" else "right")
    kinds: dict[str, list[int]] = {}
    for parameter, weight in walk(model.config, model.parameters):
        kind = parameter.name
        if kind.startswith("layers."):
            kind = kind.split(".", 2)[2]
        if not isinstance(weight, TiledMatrix) or weight.is_dense:
            kind += " (not compressed)"
        elif weight.codec != model.codec:
            kind += f" (codec {weight.codec})"
        sums = kinds.setdefault(kind, [0, 0])
        sums[0] += math.prod(parameter.shape)
        sums[1] += weight.nbytes
    total = [sum(sums[index] for sums in kinds.values()) for index in range(2)]
    for kind, (count, stored) in [*kinds.items(), ("total", total)]:
        if kind == "total":
            table.add_section()
        table.add_row(
            kind,
            f"{count:,}",
            formats.size(2 * count),
            formats.size(stored),
            formats.number(8 * stored / count, 4),
            formats.percent(stored / (2 * count)),
        )
    return table


def main(argv: list[str]) -> int:
    values = flags.FLAGS
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: give --model=FOLDER --output=FOLDER")
    for name in ("model", "output"):
        if not values[name].value:
            raise UserError(f"--{name} is missing: give --model=FOLDER --output=FOLDER")
    options = check_options(values.codec, cli.codec_options())
    tile = check_tile((values.tile_rows, values.tile_columns))
    if values.calibration:
        check_weighs(values.codec)
    console = make_console()
    start = time.perf_counter()
    console.print(f"reads {values.model}", highlight=False, markup=False, soft_wrap=True)
    folder = read_folder(values.model)
    importance = None
    if values.calibration:
        said = f"runs the model on {values.calibration}"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        importance = importance_of(folder, tokens_of_file(values.calibration, folder))
    model = encode_weights(
        folder.config,
        _Watched(folder.weights, _takes(folder.config, values.codec), console),
        values.codec,
        tile,
        options,
        folder.tokenizer,
        importance,
    )
    if model.cast is not None:
        warn_of_cast(model.cast)
    console.print(f"writes {values.output}", highlight=False, markup=False, soft_wrap=True)
    codecjax.save(model, values.output)
    console.print(size_table(model))
    if is_lossy(values.codec):
        said = distortion_line(model, folder.weights)
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    console.print(f"done in {formats.seconds(time.perf_counter() - start)}", highlight=False)
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
