"""Error feedback of `ecsq`: columns that come later make up for the errors of those before.

Columns are quantised in order. What column k lost, e, is taken off the columns j after it as
e * U[k, j] / U[k, k], with the upper triangular U of U^T U = H^-1 and H the mean products E[x x^T]
of the inputs: the weights that then make the error of x W^T least. What remains of the error is
e^2 / U[k, k]^2, so 1 / U[k, k]^2 is how important the column is. (E. Frantar, S. Ashkboos, T.
Hoefler, D. Alistarh, "GPTQ", 2022; 1 % of its mean is added to the diagonal of H as there.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs.ecsq_quantiser import dequantise, quantise
from codecjax.errors import UserError

_DAMPING = 0.01
# Columns whose errors reach the rest of the matrix at once, as a product.
_BLOCK = 128


def factors(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[K], the columns' importance, and float32[K, K], what each takes off those after it.

    Args:
      products: float32[K, K], mean products of the inputs.

    Raises:
      UserError: they cannot be mean products.
    """
    wide = products.astype(np.float64)
    damping = _DAMPING * float(np.trace(wide)) / len(wide)
    try:
        inverse = np.linalg.inv(wide + damping * np.eye(len(wide)))
        upper = np.linalg.cholesky(inverse).T
    except np.linalg.LinAlgError as error:
        raise UserError(
            "importance has no Cholesky factor: give mean products of inputs, E[x x^T]"
        ) from error
    diagonal = np.diagonal(upper)
    taken = np.triu(upper / diagonal[:, None], 1)
    return (1 / np.square(diagonal)).astype(np.float32), taken.astype(np.float32)


@jax.jit
def compensated(
    w: jax.Array,
    scale: jax.Array,
    zones: jax.Array,
    largest: jax.Array,
    table: jax.Array,
    importance: jax.Array,
    taken: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Quantises columns in order, each after the errors before it were taken off it.

    Args: of `quantise`, K a multiple of 128, and
      taken: float32[K, K] of `factors`.

    Returns:
      Indices int16[OUT, K], and the weights float32[OUT, K] that were quantised to them.
    """
    blocks = w.shape[1] // _BLOCK
    quantised = functools.partial(quantise, scale=scale, zones=zones, largest=largest, table=table)

    def block(rest: jax.Array, number: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        start = number * _BLOCK
        own = jax.lax.dynamic_slice_in_dim(taken, start, _BLOCK)
        within = jax.lax.dynamic_slice_in_dim(own, start, _BLOCK, axis=1)
        counts = jax.lax.dynamic_slice_in_dim(importance, start, _BLOCK)

        def column(
            left: jax.Array, place: jax.Array
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
            weight = left[:, place]
            index = quantised(weight[:, None], importance=counts[place])
            error = weight - dequantise(index, scale)[:, 0].astype(jnp.float32)
            left = left - error[:, None] * within[place]
            return left, (index[:, 0], weight, error)

        left = jax.lax.dynamic_slice_in_dim(rest, start, _BLOCK, axis=1)
        _, (index, weight, error) = jax.lax.scan(column, left, jnp.arange(_BLOCK))
        taken_off = jnp.matmul(error.T, own, precision=jax.lax.Precision.HIGHEST)
        return rest - taken_off, (index, weight)

    _, (index, weight) = jax.lax.scan(block, w.astype(jnp.float32), jnp.arange(blocks))
    # From [blocks, 128, OUT].
    return index.reshape(-1, w.shape[0]).T, weight.reshape(-1, w.shape[0]).T
