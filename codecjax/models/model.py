"""A model in memory: its config, its weights with the matrices stored by codecs."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import tokenizers

from codecjax.cache import CacheObject
from codecjax.codecs import cacheable_tiles
from codecjax.codecs.cast import CastReport
from codecjax.models.config import LlamaConfig
from codecjax.models.flat import Structure, flat
from codecjax.models.parameters import multiplied, parameters, walk
from codecjax.tiles import TiledMatrix


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
