"""`load`: a model from whatever folder it lies in."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from codecjax.codecs import check_options
from codecjax.codecs.cast import warn_of_cast
from codecjax.codecs.intervals import Option
from codecjax.errors import UserError
from codecjax.io.checkpoint import MANIFEST, is_checkpoint, read_checkpoint
from codecjax.io.huggingface import CONFIG, is_folder, read_folder
from codecjax.models.encoding import encode_weights
from codecjax.models.model import Model
from codecjax.models.parameters import walk
from codecjax.operations import decode
from codecjax.tiles import DEFAULT_TILE, TiledMatrix, check_tile


def load(
    path: str | os.PathLike[str],
    codec: str | None = None,
    tile: tuple[int, int] | None = None,
    **options: Option,
) -> Model:
    """Loads a Hugging Face folder or a checkpoint onto the default device.

    Weights are encoded one after another. Those of a Hugging Face folder that are not bfloat16
    are cast first, with one CastWarning that says what the cast changed.

    Args:
      path: the folder.
      codec: a name in `codecjax.codecs.CODECS`; None: "window" for a Hugging Face folder, its
        own for a checkpoint.
      tile: (rows, columns) of a tile; None: 256 x 256, or the checkpoint's.
      **options: the codec's, for example `width` of "window"; those left out have the codec's
        defaults, or, where no codec is given, the checkpoint's.

    Returns:
      The model. A checkpoint in another codec, tile or options than its own is decoded and
      encoded anew: bit for bit the same weights, unless the new codec is lossy.

    Raises:
      UserError: `path` is neither, is damaged, or codec, tile or options are impossible.
    """
    check_options(codec or "window", options)
    if tile is not None:
        check_tile(tile)
    if is_checkpoint(path):
        return _as_asked(read_checkpoint(path), codec, tile, options)
    if Path(path).is_dir() and not is_folder(path):
        raise UserError(
            f"{path} has neither a {CONFIG} nor a {MANIFEST}: "
            "give a Hugging Face folder or a codecjax checkpoint"
        )
    folder = read_folder(path)
    model = encode_weights(
        folder.config,
        folder.weights,
        codec or "window",
        tile or DEFAULT_TILE,
        options,
        folder.tokenizer,
    )
    if model.cast is not None:
        warn_of_cast(model.cast)
    return model


def _as_asked(
    model: Model, codec: str | None, tile: tuple[int, int] | None, options: Mapping[str, Option]
) -> Model:
    wanted = {**({} if codec else model.options), **options}
    codec, tile = codec or model.codec, tile or model.tile
    if (codec, check_options(codec, wanted), tile) == (model.codec, model.options, model.tile):
        return model
    encoded = encode_weights(model.config, _Decoded(model), codec, tile, wanted, model.tokenizer)
    return dataclasses.replace(encoded, cast=model.cast)


class _Decoded(Mapping[str, jax.Array]):
    """A model's weights by Hugging Face tensor name, decoded when they are asked for."""

    def __init__(self, model: Model) -> None:
        pairs = walk(model.config, model.parameters)
        self._stored = {parameter.huggingface: weight for parameter, weight in pairs}

    def __getitem__(self, name: str) -> jax.Array:
        weight = self._stored[name]
        return decode(weight) if isinstance(weight, TiledMatrix) else weight

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)
