"""The check that lossy codecs make of weights before they quantise any."""

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.errors import UserError


def check_finite(w: jax.Array, codec: str) -> None:
    """UserError where a weight of bf16[OUT, K] is NaN or infinite, which `codec` cannot store."""
    finite = jnp.isfinite(w)
    if not finite.all():
        row, column = np.unravel_index(int(jnp.argmin(finite)), w.shape)
        raise UserError(
            f"the weight in row {row}, column {column} is {float(w[row, column])}, which codec "
            f"{codec!r} cannot quantise: use codec 'window', which keeps every bit pattern"
        )
