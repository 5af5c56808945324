"""Reference of both ops in plain JAX: tile by tile, decoding only what is not resident."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from codecjax.codecs import codec_module
from codecjax.codecs.window_pool import place_to_read
from codecjax.tiles import DECODE, Residency, TiledMatrix, units_per_tile


def _untile(blocks: jax.Array, t: TiledMatrix) -> jax.Array:
    """bf16[T, rows, columns] -> bf16[OUT, K]."""
    (down, across), (rows, columns) = t.grid, t.tile
    split = blocks.reshape(down, across, rows, columns).swapaxes(1, 2)
    return split.reshape(down * rows, across * columns)[: t.shape[0], : t.shape[1]]


# What differs between matrices of one shape in one pool. As data it lets them be compiled once.
_OFFSETS = ("first_tile", "first_row", "first_slot", "first_verbatim", "first_table")


def decode(
    t: TiledMatrix, residency: Residency | None, first_tile: jax.Array
) -> tuple[jax.Array, Residency | None]:
    """bf16[OUT, K], reading resident tiles from their pages and filling pages as told."""
    if t.is_dense:
        return t.arrays["dense"], residency
    offsets, still = {}, t.place
    if t.place is not None:
        offsets = {name: jnp.int32(getattr(t.place, name)) for name in _OFFSETS}
        still = dataclasses.replace(place_to_read(t), **dict.fromkeys(_OFFSETS, 0))
    form = dataclasses.replace(t, arrays={}, place=still)
    return _decode(form, t.arrays, offsets, residency, first_tile)


@jax.jit
def _decode(
    form: TiledMatrix,
    arrays: dict[str, jax.Array],
    offsets: dict[str, Any],
    residency: Residency | None,
    first_tile: jax.Array,
) -> tuple[jax.Array, Residency | None]:
    place = form.place and dataclasses.replace(form.place, **offsets)
    t = dataclasses.replace(form, arrays=arrays, place=place)
    module = codec_module(t.codec)
    indices = jnp.arange(t.tiles)
    if residency is None:
        blocks = jax.lax.map(lambda index: module.decode_tile(t, index), indices)
        return _untile(blocks, t), None
    pages, table = residency.pages, residency.page_table
    entries = jax.lax.dynamic_slice(table, (first_tile,), (t.tiles,))
    costs_decode = module.needs_decode(t)

    def visit(
        pages: jax.Array | None, visited: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array | None, tuple[jax.Array, jax.Array]]:
        index, entry, costs = visited
        if pages is None:
            return None, (module.decode_tile(t, index), costs)
        resident = entry >= 0
        block = jax.lax.cond(resident, lambda: pages[entry], lambda: module.decode_tile(t, index))
        page = jnp.where(entry < DECODE, -entry - 2, 0)
        # Writing every time, most times what was there, keeps the pool updated in place.
        pages = pages.at[page].set(jnp.where(entry < DECODE, block, pages[page]))
        return pages, (block, costs & ~resident)

    pages, (blocks, decoded) = jax.lax.scan(visit, pages, (indices, entries, costs_decode))
    record = _recorded(t, residency, decoded, first_tile)
    return _untile(blocks, t), Residency(pages, table, record)


@jax.jit
def fill(t: TiledMatrix, residency: Residency, first_tile: jax.Array) -> Residency:
    """The residency with pages filled as told; tiles that fill none are not decoded."""
    pages, table, module = residency.pages, residency.page_table, codec_module(t.codec)
    if t.is_dense or pages is None:
        return residency
    entries = jax.lax.dynamic_slice(table, (first_tile,), (t.tiles,))
    told = module.needs_decode(t) & (entries < DECODE)

    def visit(pages: jax.Array, visited: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        index, page, told = visited
        block = jax.lax.cond(told, lambda: module.decode_tile(t, index), lambda: pages[page])
        return pages.at[page].set(block), None

    tiles = (jnp.arange(t.tiles), jnp.where(told, -entries - 2, 0), told)
    pages, _ = jax.lax.scan(visit, pages, tiles)
    return Residency(pages, table, _recorded(t, residency, told, first_tile))


def _recorded(
    t: TiledMatrix, residency: Residency, decoded: jax.Array, first_tile: jax.Array
) -> jax.Array:
    """`Residency.decoded` with bool[T] noted for all units of each tile."""
    units = jnp.broadcast_to(decoded[:, None], (t.tiles, units_per_tile(t.tile)))
    return jax.lax.dynamic_update_slice(
        residency.decoded, units.astype(jnp.int32), (first_tile, jnp.int32(0))
    )


@jax.jit
def multiply(x: jax.Array, w: jax.Array) -> jax.Array:
    """x[N, K] @ w[OUT, K].T in float32, the products of x's own precision."""
    # The barrier gives decoded and stored weights the same dot, so the same bits.
    w = jax.lax.optimization_barrier(w)
    return jax.lax.dot_general(
        x,
        w.astype(x.dtype),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
