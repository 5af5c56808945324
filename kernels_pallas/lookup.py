"""Op: rows of a tiled matrix, without decoding the tiles that they are in."""

import functools

import jax

from codecjax.codecs.window_rows import inside, read_rows
from codecjax.errors import UserError
from codecjax.tiles import TiledMatrix
from kernels_pallas import lookup_mosaic_gpu
from kernels_pallas.implementations import XLA, resolve


def lookup_implementation(t: TiledMatrix, implementation: str) -> str:
    """What looks rows of the matrix up where matmuls run by that implementation."""
    return XLA if t.is_dense else implementation


@functools.partial(jax.jit, static_argnames=("dtype", "implementation"))
def lookup(
    t: TiledMatrix,
    rows: jax.Array,
    dtype: str = "bfloat16",
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Looks rows up, as `w[rows]` does in the decoded matrix.

    Args:
      t: the matrix, [OUT, K], dense or in codec `window`.
      rows: int32[N]; numbers below 0 count from the end, and those beyond either end become it.
      dtype: of the result, "bfloat16" or "float32".
      implementation: "xla", "mosaic_gpu", or None for the fastest that can run here. mosaic_gpu
        leaves dense matrices to XLA.

    Returns:
      [N, K].

    Raises:
      UserError: the matrix is in another codec, or the implementation cannot run here.
    """
    implementation = lookup_implementation(t, resolve(implementation))
    if t.is_dense:
        return t.arrays["dense"][inside(rows, t.shape[0])].astype(dtype)
    if t.codec != "window":
        raise UserError(
            f"rows of a matrix in codec {t.codec!r} cannot be looked up: encode it in 'window'"
        )
    if implementation == XLA:
        return read_rows(t, rows).astype(dtype)
    return lookup_mosaic_gpu.read_rows(t, rows, dtype)
