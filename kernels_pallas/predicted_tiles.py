"""Decode of `int8_rans` matrices with predictions: residuals by the kernel, values by XLA.

A predicted value depends on all that are above it and to its left in its tile, but the kernel's
warpgroups know a group of units each. So the kernel leaves the residuals of the tiles that must be
decoded in a dense matrix, as bf16 has them exactly; and XLA makes values of residuals and weights
of values, all tiles at once. The bits are those of XLA alone. No prediction pays on trained
weights: this is made to be right, and not to be fast.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from codecjax.codecs.ecsq_quantiser import dequantise
from codecjax.codecs.int8_choice import rows_of, tiles_of
from codecjax.codecs.int8_prediction import restore_tiles
from codecjax.codecs.window_pool import place_of, place_to_read
from codecjax.tiles import DECODE, Residency, TiledMatrix
from kernels_pallas.entropy_kernel import EntropyConfig, Mode, run
from kernels_pallas.index_units import IndexUnits


def may_occur(t: TiledMatrix) -> bool:
    """Whether tiles of the matrix may be predicted: it was encoded with an option that says so."""
    return t.codec == "int8_rans" and t.options_dict["prediction"] != "none"


def decode(
    t: TiledMatrix,
    residency: Residency | None,
    first_tile: jax.Array,
    *,
    missing_only: bool,
    config: EntropyConfig | None,
    interpret: bool,
) -> tuple[jax.Array, Residency | None]:
    """As `entropy_mosaic_gpu.decode`, of a matrix whose tiles may be predicted."""
    mode = Mode(dense=True, resident=False, others=True, pages=False)
    residuals, after = _residuals(t, residency, first_tile, mode, config, interpret)
    return _finished(_form(t), residuals, after, first_tile, not missing_only)


def fill(
    t: TiledMatrix,
    residency: Residency,
    first_tile: jax.Array,
    *,
    config: EntropyConfig | None,
    interpret: bool,
) -> Residency:
    """As `entropy_mosaic_gpu.fill`, of a matrix whose tiles may be predicted."""
    mode = Mode(dense=True, resident=False, others=False, pages=False)
    residuals, after = _residuals(t, residency, first_tile, mode, config, interpret)
    return _finished(_form(t), residuals, after, first_tile, False)[1] or residency


def _residuals(
    t: TiledMatrix,
    residency: Residency | None,
    first_tile: jax.Array,
    mode: Mode,
    config: EntropyConfig | None,
    interpret: bool,
) -> tuple[jax.Array, Residency | None]:
    """bf16 of whole tiles, meaningless where they are not decoded; and the residency, counted."""
    decoder = IndexUnits.of(t, scaled=False)
    residuals, residency = run((t,), residency, first_tile, decoder, mode, config, interpret)
    assert residuals is not None
    return residuals, residency


def _form(t: TiledMatrix) -> TiledMatrix:
    """The matrix as those of other layers look too, which are compiled once then."""
    return dataclasses.replace(t, place=place_to_read(t))


@functools.partial(jax.jit, static_argnames=("resident",))
def _finished(
    t: TiledMatrix,
    residuals: jax.Array,
    residency: Residency | None,
    first_tile: jax.Array,
    resident: bool,
) -> tuple[jax.Array, Residency | None]:
    """bf16[OUT, K] and the residency with pages filled as told.

    Args:
      t: the matrix.
      residuals: bf16, of whole tiles, of those that were to be decoded.
      residency, first_tile: as in `kernels_pallas.decode`.
      resident: whether resident tiles are read from their pages.
    """
    weights = _weights(t, residuals)
    if residency is not None and residency.pages is not None:
        pages = residency.pages
        entries = jax.lax.dynamic_slice(residency.page_table, (first_tile,), (t.tiles,))
        filled = jnp.where(entries < DECODE, -entries - 2, pages.shape[0])
        residency = Residency(
            pages.at[filled].set(weights, mode="drop"), residency.page_table, residency.decoded
        )
        if resident:
            is_resident = (entries >= 0)[:, None, None]
            weights = jnp.where(is_resident, pages[jnp.maximum(entries, 0)], weights)
    w = rows_of(weights.reshape(*t.grid, *t.tile))
    return w[: t.shape[0], : t.shape[1]], residency


def _weights(t: TiledMatrix, residuals: jax.Array) -> jax.Array:
    """bf16[T, rows, columns]: the tiles of which the residuals are."""
    place, (down, across) = place_of(t), t.grid
    tiles = tiles_of(residuals.astype(jnp.int8), t.tile).reshape(-1, *t.tile)
    number = t.arrays["prediction"][place.first_slot : place.first_slot + t.tiles]
    values = restore_tiles(tiles, number).astype(jnp.int32)
    scale = t.arrays["scale"][place.first_row : place.first_row + down].astype(jnp.float32)
    return jax.vmap(dequantise)(values, jnp.repeat(scale, across, axis=0))
