"""Ops: decode a tiled matrix to dense bf16 or into pages."""

import jax
import jax.numpy as jnp

from codecjax.tiles import Residency, TiledMatrix
from kernels_pallas import decode_mosaic_gpu, reference_xla
from kernels_pallas.arguments import check_kernels, check_residency
from kernels_pallas.implementations import XLA, resolve


def decode(
    t: TiledMatrix,
    residency: Residency | None = None,
    first_tile: int | jax.Array = 0,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, Residency | None]:
    """Decodes a matrix.

    Args:
      t: the matrix, [OUT, K].
      residency: where its tiles may be read or stored; None decodes every tile.
      first_tile: number of the matrix's first tile in `residency` (int32 scalar).
      implementation: "xla", "mosaic_gpu", or None for the fastest that can run here. Of an
        `int8_rans` matrix that was encoded with predictions, mosaic_gpu decodes residuals, and
        XLA makes weights of them, see `predicted_tiles`.

    Returns:
      bf16[OUT, K] and the residency with pages filled as its page table says and the decoded
      units marked.

    Raises:
      UserError: the implementation cannot run here or has no kernel for the codec, or pages and
        tiles differ in shape.
    """
    implementation = resolve(implementation)
    check_kernels(t, implementation)
    check_residency(t, residency)
    first = jnp.asarray(first_tile, jnp.int32)
    if implementation == XLA:
        return reference_xla.decode(t, residency, first)
    return decode_mosaic_gpu.decode(t, residency, first)


def fill(
    t: TiledMatrix,
    residency: Residency,
    first_tile: int | jax.Array = 0,
    *,
    implementation: str | None = None,
) -> Residency:
    """Decodes the tiles that the page table has pages for, and nothing else.

    Args:
      t, first_tile, implementation: as in `decode`.
      residency: its pages and page table say which tiles go where.

    Returns:
      The residency with those pages filled, and as decoded units those of their tiles.

    Raises:
      UserError: as in `decode`.
    """
    implementation = resolve(implementation)
    check_kernels(t, implementation)
    check_residency(t, residency)
    first = jnp.asarray(first_tile, jnp.int32)
    module = reference_xla if implementation == XLA else decode_mosaic_gpu
    return module.fill(t, residency, first)
