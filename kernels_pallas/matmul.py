"""Op: multiply by a tiled matrix, each tile read from its page or decoded on the way."""

import jax
import jax.numpy as jnp

from codecjax.errors import UserError
from codecjax.tiles import Residency, TiledMatrix
from kernels_pallas import decode_mosaic_gpu, matmul_mosaic_gpu, reference_xla
from kernels_pallas.arguments import check_residency
from kernels_pallas.implementations import XLA, resolve


def matmul(
    x: jax.Array,
    t: TiledMatrix,
    residency: Residency | None = None,
    first_tile: int | jax.Array = 0,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, Residency | None]:
    """Multiplies x by the transpose of a tiled matrix.

    Args:
      x: [N, K], bfloat16 or (xla only) float32.
      t: the matrix, [OUT, K].
      residency: where its tiles may be read or stored; None decodes every tile.
      first_tile: number of the matrix's first tile in `residency` (int32 scalar).
      implementation: "xla", "mosaic_gpu", or None for the fastest that can run here.
        mosaic_gpu multiplies up to 64 rows of x in one fused kernel; for more it decodes the
        matrix once and leaves the product to XLA.

    Returns:
      float32[N, OUT] and the residency with pages filled as its page table says and the
      decoded units marked.

    Raises:
      UserError: shapes or dtypes do not fit, or the implementation cannot run here.
    """
    implementation = resolve(implementation)
    check_residency(t, residency)
    if x.ndim != 2 or x.shape[1] != t.shape[1]:
        raise UserError(
            f"x of shape {x.shape} cannot multiply a matrix of shape {t.shape}: "
            f"give x as [N, {t.shape[1]}]"
        )
    first = jnp.asarray(first_tile, jnp.int32)
    if implementation == XLA:
        return reference_xla.matmul(x, t, residency, first)
    if x.dtype != jnp.bfloat16:
        raise UserError(f"mosaic_gpu multiplies bfloat16 only: cast x from {x.dtype}")
    if x.shape[0] > matmul_mosaic_gpu.MAX_ROWS:
        w, residency = decode_mosaic_gpu.decode(t, residency, first)
        return reference_xla.multiply(x, w), residency
    return matmul_mosaic_gpu.matmul(x, t, residency, first)
