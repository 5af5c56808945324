"""`decode` and `matmul` as users call them: arrays in, arrays out."""

import jax
import jax.numpy as jnp

import kernels_pallas
from codecjax.errors import UserError
from codecjax.tiles import Residency, TiledMatrix, units_per_tile


def decode(t: TiledMatrix, *, implementation: str | None = None) -> jax.Array:
    """Decodes a matrix to bf16[OUT, K]: bit for bit what was encoded, unless its codec is lossy.

    Args:
      t: the matrix.
      implementation: "xla", "mosaic_gpu", or None for the fastest that can run here.

    Raises:
      UserError: the implementation cannot run here.
    """
    return kernels_pallas.decode(t, implementation=implementation)[0]


def matmul(
    x: jax.Array,
    t: TiledMatrix,
    pages: jax.Array | None = None,
    page_table: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Multiplies x[N, K] by the transpose of a tiled matrix [OUT, K].

    Args:
      x: [N, K], bfloat16, or float32 where the implementation is xla.
      t: the matrix.
      pages: bf16[P, rows, columns], decoded tiles; None where none is resident.
      page_table: int32[T]: the page that holds each tile, or -1 to decode it.
      implementation: "xla", "mosaic_gpu", or None for the fastest that can run here.

    Returns:
      float32[N, OUT].

    Raises:
      UserError: shapes or dtypes do not fit, pages come without a page table or the other way
        round, or the implementation cannot run here.
    """
    if (pages is None) != (page_table is None):
        raise UserError("pages and page_table go together: give both or neither")
    residency = None
    if page_table is not None:
        page_table = jnp.asarray(page_table, jnp.int32)
        if page_table.shape != (t.tiles,):
            raise UserError(
                f"page_table has shape {page_table.shape}: "
                f"give one entry for each of the {t.tiles} tiles"
            )
        decoded = jnp.zeros((t.tiles, units_per_tile(t.tile)), jnp.int32)
        residency = Residency(pages, page_table, decoded)
    return kernels_pallas.matmul(x, t, residency, implementation=implementation)[0]
