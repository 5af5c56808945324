"""Mean products of the inputs of a model's projections on a text: what makes columns important.

E[x x^T] is the Hessian of a projection's mean squared error in the weights of a row, up to a
factor; its diagonal are the mean squares of the inputs.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.errors import UserError
from codecjax.models.config import LlamaConfig
from codecjax.models.linear import TiledLinear
from codecjax.models.llama import Llama
from codecjax.models.parameters import sharing_inputs
from codecjax.tiles import Residency
from kernels_pallas.inputs import Input, value_of

# Windows of one batch.
_BATCH = 8


def calibration_windows(ids: np.ndarray, length: int, windows: int) -> np.ndarray:
    """int32[N, S]: parts of a tokenized text, evenly spread over it.

    Args:
      ids: int32[n], the text's tokens.
      length: of a part; S is less where the text is shorter.
      windows: the most parts; N is less where the text has fewer whole ones.

    Raises:
      UserError: there are no tokens.
    """
    if not len(ids):
        raise UserError("the calibration text has no tokens: give a longer one")
    length = min(length, len(ids))
    whole = len(ids) // length
    chosen = np.linspace(0, whole - 1, min(windows, whole)).astype(int)
    return ids[: whole * length].reshape(whole, length)[chosen].astype(np.int32)


@functools.partial(jax.jit, static_argnames=("config",))
def _product_sums(
    config: LlamaConfig, tree: Mapping[str, Any], tokens: jax.Array
) -> list[jax.Array]:
    """float32[K, K] for each group of `sharing_inputs`: sums over tokens int32[B, S]."""
    sums: list[jax.Array] = []

    class Watched(TiledLinear):
        """Notes the products of its inputs; the model uses its projections in order."""

        def __call__(
            self, x: Input, *rest: Any, **options: Any
        ) -> tuple[tuple[jax.Array, ...], Residency | None]:
            inputs = value_of(x)
            sums.append(jnp.matmul(inputs.T, inputs, precision=jax.lax.Precision.HIGHEST))
            return super().__call__(x, *rest, **options)

    llama = Llama(config, tree, linear=Watched)
    hidden, _, _ = llama.hidden(tokens)
    llama.logits(hidden)
    return sums


def input_importance(
    config: LlamaConfig, tree: Mapping[str, Any], tokens: np.ndarray
) -> dict[str, np.ndarray]:
    """Mean products of the inputs of every projection, by Hugging Face tensor name, float32[K, K].

    Args:
      config: sizes and constants.
      tree: the parameter tree, its projections arrays or TiledMatrices.
      tokens: int32[N, S], each row a text from its beginning.
    """
    groups = sharing_inputs(config)
    totals = [np.zeros((group[0].shape[1],) * 2) for group in groups]
    for start in range(0, len(tokens), _BATCH):
        sums = _product_sums(config, tree, jnp.asarray(tokens[start : start + _BATCH]))
        for total, found in zip(totals, sums, strict=True):
            total += np.asarray(found, np.float64)
    importance: dict[str, np.ndarray] = {}
    for group, total in zip(groups, totals, strict=True):
        products = (total / tokens.size).astype(np.float32)
        importance |= {each.huggingface: products for each in group}
    return importance
