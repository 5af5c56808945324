"""Fused matmul as Mosaic GPU kernels: units are decoded on their way to the matrix unit.

Up to 8 rows of x go to `few_rows_mosaic_gpu`, or to `entropy_kernel` if the codec is in FUSED; more
to `more_rows_mosaic_gpu`. Matrices that multiply the same x are one launch: a small one alone would
leave most of the GPU idle.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from codecjax.errors import UserError
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, Residency, TiledMatrix
from kernels_pallas import (
    decode_mosaic_gpu,
    entropy_mosaic_gpu,
    few_rows_mosaic_gpu,
    more_rows_mosaic_gpu,
    tuning,
    unit_products,
)
from kernels_pallas.coded_stack import share_arrays
from kernels_pallas.entropy_mosaic_gpu import ENTROPY_CODED, FUSED
from kernels_pallas.few_rows_inputs import made_here
from kernels_pallas.few_rows_mosaic_gpu import FewRowsConfig
from kernels_pallas.inputs import Input, Made, value_of
from kernels_pallas.lanes import Lanes
from kernels_pallas.more_rows_mosaic_gpu import MAX_ROWS, MoreRowsConfig
from kernels_pallas.mosaic import SMS
from kernels_pallas.prefetch import Asking, stretches
from kernels_pallas.unit_stream import MAX_TILES_ACROSS, UnitStream
from kernels_pallas.warps import WARPS

# Rows of x up to which decoding once for each part of them takes less time than decoding first.
MOST_ROWS = 8 * MAX_ROWS
SPLITS = (1, 2, 4, 8)
DOWN = (1, 2, 4)
# Rows of x from which units that share it save more than they wait for one another.
_SHARED_ROWS = 64

Config = MoreRowsConfig | FewRowsConfig


def choose_config(units_down: int, units_across: int, batch: int) -> Config:
    """What was measured to be fastest on this device, or else a sane guess.

    For more than 8 rows the guess is slices of two units at least: as many as a cluster has CTAs
    where the weights decide, and where x does, two rows of units in a CTA and enough CTAs.
    """
    if batch > MAX_ROWS:
        blocks = -(-units_down // 2) * -(-batch // MAX_ROWS)
        splits = 1 if 2 * blocks > SMS else _fitting(units_across)[:2][-1]
        return MoreRowsConfig(splits, stages=2, down=2 // splits)
    tuned = tuning.settings(tuning.MATMUL, units_down, units_across, batch)
    if batch <= few_rows_mosaic_gpu.MAX_ROWS:
        if tuned is not None:
            return FewRowsConfig(tuned["warpgroups"])
        return few_rows_mosaic_gpu.guess(units_down, units_across)
    if tuned is not None:
        return MoreRowsConfig(tuned["splits"], tuned["stages"], tuned.get("down", 1))
    fitting = _fitting(units_across)
    if batch < _SHARED_ROWS:
        return MoreRowsConfig(fitting[-1], stages=2)
    down = 2 if units_down >= SMS else 1
    wanted = SMS * (2 if batch == _SHARED_ROWS else 1) * 31 // 32
    enough = (splits for splits in fitting if -(-units_down // down) * splits >= wanted)
    return MoreRowsConfig(next(enough, fitting[-1]), stages=2, down=down)


def candidates(units_down: int, units_across: int, batch: int) -> list[Config]:
    """Settings worth measuring."""
    if batch <= few_rows_mosaic_gpu.MAX_ROWS:
        return [
            FewRowsConfig(warpgroups)
            for warpgroups in (1, 2, 4)
            if warpgroups == 1 or WARPS * warpgroups <= units_across
        ]
    return [
        MoreRowsConfig(splits, stages, down)
        for splits in _fitting(units_across)[: 3 if batch > _SHARED_ROWS else None][-3:]
        for stages in (2, 3)
        for down in (DOWN if batch >= _SHARED_ROWS else DOWN[:1])
        if stages <= units_across // splits and down <= units_down
    ]


def _fitting(units_across: int) -> list[int]:
    return [splits for splits in SPLITS if splits == 1 or 2 * splits <= units_across]


def matmul(
    x: Input,
    matrices: Sequence[TiledMatrix],
    residency: Residency | None,
    first_tile: jax.Array,
    added: jax.Array | None = None,
    following: Sequence[TiledMatrix | jax.Array] = (),
    *,
    config: Config | None = None,
    interpret: bool = False,
) -> tuple[tuple[jax.Array, ...], Residency | None]:
    """float32[N, OUT] = bf16 x[N, K] times each decoded matrix, N at most MOST_ROWS.

    The matrices' tiles follow one another in the page table. Every sum has the same order
    however its matrix is stored. What of an entropy-coded matrix is not resident is decoded to
    a dense matrix first, unless x has few rows and the codec is in FUSED. So is all of a matrix of
    which some may be in pages, if x has more rows than a CTA. `added` and `following` are as in
    `kernels_pallas.matmul_all`.
    """
    units_down = sum(t.unit_grid[0] for t in matrices)
    units_across = matrices[0].unit_grid[1]
    config = config or choose_config(units_down, units_across, x.shape[0])
    splits = config.splits if isinstance(config, MoreRowsConfig) else 1
    tiles_a_walk = -(-units_across // splits) * UNIT_COLUMNS // matrices[0].tile[1] + 1
    if tiles_a_walk > MAX_TILES_ACROSS:
        raise UserError(
            f"a matrix of {matrices[0].shape[1]} columns in tiles of {matrices[0].tile[1]} has "
            f"more than {MAX_TILES_ACROSS} tiles in a row of one slice: encode it with wider tiles"
        )
    fused: tuple[str, ...] = ()
    if isinstance(config, FewRowsConfig):
        fused = FUSED
        if isinstance(x, Made) and not made_here(x):
            x = x.value()
    if x.shape[0] > MAX_ROWS and residency is not None and residency.pages is not None:
        # Each part of x would decode, and fill, the same again.
        whole = functools.partial(decode_mosaic_gpu.decode, interpret=interpret)
        every = (*ENTROPY_CODED, "window")
        dense, residency = _decoded(matrices, every, whole, residency, first_tile)
        products, _ = matmul(x, dense, None, first_tile, added, config=config, interpret=interpret)
        return products, residency
    # Of what this makes dense, resident tiles are meaningless.
    missing = functools.partial(entropy_mosaic_gpu.decode, missing_only=True, interpret=interpret)
    apart = [each for each in ENTROPY_CODED if each not in fused]
    matrices, residency = _decoded(matrices, apart, missing, residency, first_tile)
    found: list[jax.Array] = []
    for group in _together(matrices, fused):
        if isinstance(config, FewRowsConfig) and _is_coded(group[0], fused):
            y, residency = _fused(x, group, residency, first_tile, added, config, interpret)
        else:
            y, residency = _product(
                x, group, residency, first_tile, added, following, config, interpret
            )
        row = 0
        for t in group:
            found.append(y[:, row : row + t.shape[0]])
            row += t.unit_grid[0] * UNIT_ROWS
        first_tile += sum(t.tiles for t in group)
    return tuple(found), residency


def _together(matrices: Sequence[TiledMatrix], fused: Sequence[str]) -> list[list[TiledMatrix]]:
    """The matrices in their order, those together that one launch can have."""
    if any(_is_coded(t, fused) for t in matrices):
        as_one = all(_is_coded(t, fused) for t in matrices) and share_arrays(matrices)
    else:
        as_one = UnitStream.fit_together(matrices)
    return [list(matrices)] if as_one else [[t] for t in matrices]


def _is_coded(t: TiledMatrix, codecs: Sequence[str]) -> bool:
    """Whether the matrix is stored by one of the codecs, and not as it is."""
    return t.codec in codecs and not t.is_dense


def _fused(
    x: Input,
    group: Sequence[TiledMatrix],
    residency: Residency | None,
    first_tile: jax.Array,
    added: jax.Array | None,
    config: FewRowsConfig,
    interpret: bool,
) -> tuple[jax.Array, Residency | None]:
    """The product with matrices of a codec in FUSED, one launch's, and the residency."""
    rows = (
        unit_products.made_rows(x, group[0].unit_grid[1], interpret) if isinstance(x, Made) else x
    )
    products, residency = entropy_mosaic_gpu.multiply(
        rows, group, residency, first_tile, interpret=interpret
    )
    if added is not None:
        added = jnp.pad(added, ((0, 0), (0, products.shape[-1] - added.shape[1])))
    return unit_products.add_up(products, x, added, config, interpret), residency


def _decoded(
    matrices: Sequence[TiledMatrix],
    codecs: Sequence[str],
    decode: Callable[..., tuple[jax.Array, Residency | None]],
    residency: Residency | None,
    first_tile: jax.Array,
) -> tuple[list[TiledMatrix], Residency | None]:
    """The matrices of some codecs as dense ones, by `decode`, the others as they are."""
    dense: list[TiledMatrix] = []
    for t in matrices:
        tiles = t.tiles
        if _is_coded(t, codecs):
            w, residency = decode(t, residency, first_tile)
            t = dataclasses.replace(t, arrays={"dense": w}, place=None)
        dense.append(t)
        first_tile += tiles
    return dense, residency


def _product(
    x: Input,
    group: Sequence[TiledMatrix],
    residency: Residency | None,
    first_tile: jax.Array,
    added: jax.Array | None,
    following: Sequence[TiledMatrix | jax.Array],
    config: Config,
    interpret: bool,
) -> tuple[jax.Array, Residency | None]:
    """The product with matrices that fit together, and the residency."""
    stages, overlaid = 1, group[0].codec in ENTROPY_CODED
    if isinstance(config, MoreRowsConfig):
        stages = min(config.stages, group[0].unit_grid[1] // config.splits)
    stream, sources = UnitStream.of(group, residency, stages, Lanes(interpret), overlaid)
    if isinstance(config, MoreRowsConfig):
        stream, config = more_rows_mosaic_gpu.that_fit(stream, config, x.shape[0])
    if added is not None:
        added = jnp.pad(added, ((0, 0), (0, stream.units_down * UNIT_ROWS - added.shape[1])))
    if isinstance(config, FewRowsConfig):
        arrays, ahead = stretches(following, residency, Asking.of(group[0].is_dense).most_bytes)
        y, residency = few_rows_mosaic_gpu.multiply(
            x, added, sources, residency, first_tile, stream, config, arrays, ahead
        )
        return y, residency
    y, residency = more_rows_mosaic_gpu.multiply(
        value_of(x), sources, residency, first_tile, stream, config
    )
    return y if added is None else added + y, residency
