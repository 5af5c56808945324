"""From plain weights to a model: each is stored by the model's codec, one after another."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from codecjax.codecs import (
    check_importance,
    check_options,
    check_weighs,
    encode_with_report,
    plan,
    plans,
    pooled,
)
from codecjax.codecs.cast import CastReport, to_bf16
from codecjax.codecs.intervals import Option
from codecjax.codecs.window import NARROWEST
from codecjax.errors import UserError
from codecjax.models.config import LlamaConfig
from codecjax.models.embedding import encode_embedding
from codecjax.models.fitting import fitted
from codecjax.models.model import Model
from codecjax.models.parameters import EMBEDDING, Parameter, layers, parameters, to_tree
from codecjax.tiles import TiledMatrix, check_tile


def encode_weights(
    config: LlamaConfig,
    weights: Mapping[str, jax.Array | np.ndarray],
    codec: str,
    tile: tuple[int, int],
    options: Mapping[str, Option],
    tokenizer: tokenizers.Tokenizer | None = None,
    importance: Mapping[str, jax.Array | np.ndarray] | None = None,
) -> Model:
    """Encodes a model's weights, one after another, on the default device.

    Args:
      config: sizes and constants.
      weights: by Hugging Face tensor name, bfloat16, float16 or float32. Each is asked for
        once, or more often where the codec plans or has `most_bits` to meet, so they may be made
        when they are asked for.
      codec: a name in `codecjax.codecs.CODECS`.
      tile: (rows, columns) of a tile.
      options: the codec's.
      tokenizer: the model's, or None.
      importance: by Hugging Face tensor name of each projection, as of `codecjax.encode`; only of
        a codec that weighs. `codecjax.models.calibration` measures it.

    Raises:
      UserError: unknown codec or option, a bad tile, a weight or an importance that is missing, of
        the wrong shape or of another dtype, or weights that the codec cannot store as the options
        ask.
    """
    filled = check_options(codec, dict(options))
    # Of all matrices together, not of each.
    most_bits = float(filled.get("most_bits", 0.0))
    own_options = {**filled, "most_bits": 0.0} if most_bits else filled
    check_tile(tile)
    cast: CastReport | None = None
    planned = None
    weighed = _weighed(config, codec, importance)
    if plans(codec):
        with_projections = [[each for each in layer if each.projection] for layer in layers(config)]
        projections = [each for layer in with_projections for each in layer]
        planned = plan(
            codec,
            lambda: (_weight_of(each, weights) for each in projections),
            tile,
            sum(map(bool, with_projections)),
            [weighed[each.huggingface] for each in projections] if weighed else None,
            **filled,
        )

    def stored(parameter: Parameter) -> TiledMatrix | jax.Array:
        nonlocal cast
        weight, report = to_bf16(jnp.asarray(_weight_of(parameter, weights)))
        if parameter.projection:
            own = weighed.get(parameter.huggingface)
            weight, _ = encode_with_report(weight, codec, tile, planned, own, **own_options)
        elif parameter.name == EMBEDDING:
            weight = encode_embedding(weight, codec, tile, filled)
        if report is not None:
            cast = report if cast is None else cast.merge(report)
        return weight

    tree = assembled(config, codec, stored)
    model = Model(config, tree, tokenizer, codec, filled, tile, cast)
    if not most_bits:
        return model

    def narrow(parameter: Parameter) -> TiledMatrix:
        weight = jnp.asarray(_weight_of(parameter, weights))
        return encode_with_report(weight, codec, tile, width=NARROWEST)[0]

    return fitted(model, most_bits, narrow)


def assembled(
    config: LlamaConfig, codec: str, stored: Callable[[Parameter], TiledMatrix | jax.Array]
) -> dict[str, Any]:
    """The parameter tree, a layer's projections in arrays that they share where they can.

    Args:
      config: sizes and constants.
      codec: of the projections.
      stored: gives each weight, asked for once, in the order of use.
    """
    weights: dict[str, Any] = {}
    for layer in layers(config):
        weights |= {parameter.huggingface: stored(parameter) for parameter in layer}
        names = [parameter.huggingface for parameter in layer if parameter.projection]
        shared = pooled(codec, [weights[name] for name in names])
        weights |= dict(zip(names, shared, strict=True))
    return to_tree(config, weights)


def _weight_of(
    parameter: Parameter, weights: Mapping[str, jax.Array | np.ndarray]
) -> jax.Array | np.ndarray:
    if parameter.huggingface not in weights:
        raise UserError(f"tensor {parameter.huggingface} is missing: give all of the weights")
    weight = weights[parameter.huggingface]
    if tuple(weight.shape) != parameter.shape:
        raise UserError(
            f"tensor {parameter.huggingface} has shape {list(weight.shape)}, but the config asks "
            f"for {list(parameter.shape)}: one of them belongs to another model"
        )
    return weight


def _weighed(
    config: LlamaConfig, codec: str, importance: Mapping[str, jax.Array | np.ndarray] | None
) -> dict[str, np.ndarray]:
    """The importance of every projection, checked; nothing where there is none."""
    if importance is None:
        return {}
    check_weighs(codec)
    found = {}
    for each in parameters(config):
        if each.projection:
            if each.huggingface not in importance:
                raise UserError(
                    f"the importance of {each.huggingface} is missing: give that of all projections"
                )
            found[each.huggingface] = check_importance(importance[each.huggingface], each.shape[1])
    return found
