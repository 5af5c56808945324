"""A model in memory: its config, its weights with the matrices stored by codecs."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from codecjax.cache import CacheObject
from codecjax.codecs import (
    cacheable_tiles,
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
from codecjax.errors import UserError
from codecjax.models.config import LlamaConfig
from codecjax.models.embedding import encode_embedding
from codecjax.models.flat import Structure, flat
from codecjax.models.parameters import (
    EMBEDDING,
    Parameter,
    layers,
    multiplied,
    parameters,
    to_tree,
    walk,
)
from codecjax.tiles import TiledMatrix, check_tile

# Of random weights: the usual initializer, and rows whose scales differ as trained ones do.
_WEIGHT_STD = 0.02
_ROW_SCALE_STD = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A Llama whose matrices are tiled.

    Attributes:
      config: sizes and constants.
      parameters: the tree of `codecjax.models.parameters`; projections and the embedding are
        TiledMatrix (the latter as `codecjax.models.embedding` says), norms bf16 arrays.
      tokenizer: None where the model came without one.
      codec: of the projections.
      options: the codec's, defaults filled in.
      tile: (rows, columns) of a tile.
      cast: what casting the weights to bf16 changed, None where they were bf16.
    """

    config: LlamaConfig
    parameters: dict[str, Any]
    tokenizer: tokenizers.Tokenizer | None
    codec: str
    options: dict[str, Any]
    tile: tuple[int, int]
    cast: CastReport | None = None

    @functools.cached_property
    def matrices(self) -> dict[str, TiledMatrix]:
        """What a step multiplies by, by report name, in the order in which it does.

        These are the projections and, as the head of a tied model, its embedding.
        """
        weights = dict(walk(self.config, self.parameters))
        return {each.name: weights[each] for each in multiplied(self.config)}

    @functools.cached_property
    def flat(self) -> tuple[list[jax.Array], Structure]:
        """The parameters as `codecjax.models.flat` makes them few arrays."""
        return flat(self.parameters)

    @functools.cached_property
    def first_tiles(self) -> dict[str, int]:
        """By report name of a matrix, the number of its first tile among TILES."""
        first, firsts = 0, {}
        for name, t in self.matrices.items():
            firsts[name] = first
            first += t.tiles
        return firsts

    @property
    def tile_count(self) -> int:
        """TILES."""
        return sum(t.tiles for t in self.matrices.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of the parameters."""
        # A layer's projections share arrays.
        arrays = {id(array): array for array in jax.tree.leaves(self.parameters)}
        return sum(array.nbytes for array in arrays.values())

    @property
    def bf16_nbytes(self) -> int:
        """Bytes of all weights in plain bf16."""
        return sum(2 * math.prod(each.shape) for each in parameters(self.config))

    @property
    def bits_per_weight(self) -> float:
        """Of all projections together."""
        pairs = walk(self.config, self.parameters)
        projections = [weight for parameter, weight in pairs if parameter.projection]
        weights = sum(math.prod(t.shape) for t in projections)
        return 8 * sum(t.nbytes for t in projections) / weights


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
        once, or more often where the codec plans, so they may be made when they are asked for.
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
            weight, _ = encode_with_report(weight, codec, tile, planned, own, **filled)
        elif parameter.name == EMBEDDING:
            weight = encode_embedding(weight, codec, tile, filled)
        if report is not None:
            cast = report if cast is None else cast.merge(report)
        return weight

    tree = assembled(config, codec, stored)
    return Model(config, tree, tokenizer, codec, filled, tile, cast)


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


@functools.partial(jax.jit, static_argnames=("shape",))
def _random_matrix(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    of_weights, of_rows = jax.random.split(key)
    scales = _WEIGHT_STD * jnp.exp(_ROW_SCALE_STD * jax.random.normal(of_rows, (shape[0], 1)))
    return (scales * jax.random.normal(of_weights, shape)).astype(jnp.bfloat16)


class _RandomWeights(Mapping[str, jax.Array]):
    """Weights that are made when they are asked for, on the default device."""

    def __init__(self, config: LlamaConfig, seed: int) -> None:
        self._numbered = {
            each.huggingface: (index, each) for index, each in enumerate(parameters(config))
        }
        self._key = jax.random.key(seed)

    def __getitem__(self, name: str) -> jax.Array:
        index, parameter = self._numbered[name]
        if len(parameter.shape) == 1:
            return jnp.ones(parameter.shape, jnp.bfloat16)
        return _random_matrix(jax.random.fold_in(self._key, index), parameter.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._numbered

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbered)

    def __len__(self) -> int:
        return len(self._numbered)


def random_model(
    config: LlamaConfig,
    seed: int,
    codec: str,
    tile: tuple[int, int],
    options: Mapping[str, Option],
) -> Model:
    """A model of seeded random weights, the same for every codec; norms are ones.

    Rows are normal, their scales log-normal around 0.02. Weights are made on the default
    device, never more than one of them uncompressed.

    Args and errors: as `encode_weights`.
    """
    return encode_weights(config, _RandomWeights(config, seed), codec, tile, options)


def cache_objects(model: Model) -> list[CacheObject]:
    """One cache object a matrix of `Model.matrices`, in the order in which a step uses them.

    An object has the tiles that cost a decode, and as its cost their number: seconds per step
    up to a factor, where all tiles take equally long to decode.
    """
    objects = []
    for name, t in model.matrices.items():
        tiles = model.first_tiles[name] + np.flatnonzero(cacheable_tiles(t))
        objects.append(CacheObject(name, tiles.astype(np.int32), float(len(tiles))))
    return objects
