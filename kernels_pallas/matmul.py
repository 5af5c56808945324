"""Op: multiply by tiled matrices, each tile read from its page or decoded on the way."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from codecjax.errors import UserError
from codecjax.tiles import Residency, TiledMatrix
from kernels_pallas import decode_mosaic_gpu, matmul_mosaic_gpu, reference_xla
from kernels_pallas.arguments import check_kernels, check_residency
from kernels_pallas.implementations import XLA, resolve
from kernels_pallas.inputs import Input, value_of


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
      residency, first_tile, implementation: as in `matmul_all`.

    Returns:
      float32[N, OUT] and the residency afterwards.

    Raises:
      UserError: shapes or dtypes do not fit, or the implementation cannot run here.
    """
    (y,), residency = matmul_all(x, (t,), residency, first_tile, implementation=implementation)
    return y, residency


def matmul_all(
    x: Input,
    matrices: Sequence[TiledMatrix],
    residency: Residency | None = None,
    first_tile: int | jax.Array = 0,
    *,
    added: jax.Array | None = None,
    following: Sequence[TiledMatrix | jax.Array] = (),
    implementation: str | None = None,
) -> tuple[tuple[jax.Array, ...], Residency | None]:
    """Multiplies x by the transpose of each of several tiled matrices.

    Args:
      x: [N, K], bfloat16 or (xla only) float32, or what it is made of, see `inputs`.
      matrices: [OUT, K] each.
      residency: where their tiles may be read or stored; None decodes every tile.
      first_tile: number of the first matrix's first tile in `residency` (int32 scalar); the
        other matrices' tiles follow.
      added: float32[N, OUT] that is added to the product, of which there is one then.
      following: what is read after these matrices; a kernel may ask the L2 cache for it.
      implementation: "xla", "mosaic_gpu", or None for the fastest that can run here.
        mosaic_gpu multiplies up to 2,048 rows of x in one fused kernel, which has all of the
        matrices where they are stored alike; for more rows it decodes each matrix once and leaves
        the product to XLA. Before the kernel multiplies, entropy-coded matrices are decoded, but
        for rans and up to 8 rows of x; and with pages, from 257 rows of x on, all are.

    Returns:
      float32[N, OUT] for each matrix, and the residency with pages filled as its page table
      says and the decoded units marked.

    Raises:
      UserError: shapes or dtypes do not fit, or the implementation cannot run here.
    """
    implementation = resolve(implementation)
    for t in matrices:
        check_kernels(t, implementation)
        check_residency(t, residency)
        if len(x.shape) != 2 or x.shape[1] != t.shape[1]:
            raise UserError(
                f"x of shape {x.shape} cannot multiply a matrix of shape {t.shape}: "
                f"give x as [N, {t.shape[1]}]"
            )
    if added is not None and (len(matrices) > 1 or added.shape != (x.shape[0], t.shape[0])):
        raise UserError(
            f"an array of shape {added.shape} cannot be added to products of {len(matrices)} "
            f"matrices, the last of shape {t.shape}: give one matrix and its product's shape"
        )
    if implementation != XLA and jnp.dtype(x.dtype) != jnp.bfloat16:
        raise UserError(f"mosaic_gpu multiplies bfloat16 only: cast x from {x.dtype}")
    first = jnp.asarray(first_tile, jnp.int32)
    if implementation != XLA and x.shape[0] <= matmul_mosaic_gpu.MOST_ROWS:
        return matmul_mosaic_gpu.matmul(x, tuple(matrices), residency, first, added, following)
    decode = reference_xla.decode if implementation == XLA else decode_mosaic_gpu.decode
    products: list[jax.Array] = []
    multiplied = value_of(x)
    for t in matrices:
        w, residency = decode(t, residency, first)
        y = reference_xla.multiply(multiplied, w)
        products.append(y if added is None else added + y)
        first += t.tiles
    return tuple(products), residency
