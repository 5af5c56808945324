"""Models of random weights, in the shapes of any Llama."""

import functools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from codecjax.codecs.intervals import Option
from codecjax.models.config import LlamaConfig
from codecjax.models.encoding import encode_weights
from codecjax.models.model import Model
from codecjax.models.parameters import parameters

# The usual initializer, and rows whose scales differ as trained ones do.
_WEIGHT_STD = 0.02
_ROW_SCALE_STD = 0.25


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
