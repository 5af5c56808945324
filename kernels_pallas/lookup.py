"""Op: rows of a tiled matrix, without decoding the tiles that they are in."""

import jax
import jax.numpy as jnp

from codecjax.codecs.window_rows import read_rows
from codecjax.errors import UserError
from codecjax.tiles import TiledMatrix


@jax.jit
def lookup(t: TiledMatrix, rows: jax.Array) -> jax.Array:
    """Looks rows up, as `w[rows]` does in the decoded matrix.

    XLA computes it, on every device: it is far from being a step's dearest part.

    Args:
      t: the matrix, [OUT, K], dense or in codec `window`.
      rows: int32[N]; numbers below 0 count from the end, and those beyond either end become it.

    Returns:
      bf16[N, K].

    Raises:
      UserError: the matrix is in another codec.
    """
    from_start = jnp.where(rows < 0, rows + t.shape[0], rows)
    rows = jnp.clip(from_start, 0, t.shape[0] - 1)
    if t.is_dense:
        return t.arrays["dense"][rows]
    if t.codec != "window":
        raise UserError(
            f"rows of a matrix in codec {t.codec!r} cannot be looked up: encode it in 'window'"
        )
    return read_rows(t, rows)
