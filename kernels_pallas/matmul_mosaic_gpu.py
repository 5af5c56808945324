"""Fused matmul as Mosaic GPU kernels: units are decoded on their way to the matrix unit.

Up to 8 rows of x go to `few_rows_mosaic_gpu`, or to `entropy_kernel` if the codec is in FUSED.
Here, each CTA multiplies a few rows of units, one a warpgroup, by a slice of K of x, which they
share. The CTAs of the same rows are a cluster, which adds their sums in a fixed order through
shared memory. x is at most 256 rows. Matrices that multiply the same x are one launch: a small one
alone would leave most of the GPU idle.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.errors import UserError
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, Residency, TiledMatrix
from kernels_pallas import entropy_mosaic_gpu, few_rows_mosaic_gpu, tuning, unit_products
from kernels_pallas.coded_stack import share_arrays
from kernels_pallas.entropy_mosaic_gpu import ENTROPY_CODED, FUSED
from kernels_pallas.few_rows_inputs import made_here
from kernels_pallas.few_rows_mosaic_gpu import FewRowsConfig
from kernels_pallas.inputs import Input, Made, value_of
from kernels_pallas.lanes import SWIZZLE_TRANSFORMS, Lanes
from kernels_pallas.mosaic import LANE_SEMANTICS, SMS, interpreter
from kernels_pallas.prefetch import stretches
from kernels_pallas.unit_stream import MAX_TILES_ACROSS, UnitStream
from kernels_pallas.unit_walk import UnitWalk
from kernels_pallas.warps import WARPS

MAX_ROWS = 256
# Up to which launches that each decode take less time than decoding once before a product.
_MOST_ROWS = 2 * MAX_ROWS
ROW_STEPS = (16, 32, 64, 128, 256)
SPLITS = (1, 2, 4, 8)
DOWN = (1, 2, 4)
# Of shared memory, what a CTA may have on Hopper less some for barriers and alignment.
_MOST_SHARED = 223 * 2**10
# Rows of units times rows of x of a CTA, whose sums leave enough registers for the rest.
_MOST_SUMS = 512
# Rows of x from which units that share it save more than they wait for one another.
_SHARED_ROWS = 64


@dataclasses.dataclass(frozen=True)
class MatmulConfig:
    """How the work is cut for more than 8 rows.

    Attributes:
      splits: slices of K, each a CTA of a cluster of at most 8.
      stages: units in flight in each row of units of a CTA.
      down: rows of units of a CTA.
    """

    splits: int
    stages: int
    down: int = 1


Config = MatmulConfig | FewRowsConfig


def choose_config(units_down: int, units_across: int, batch: int) -> Config:
    """What was measured to be fastest on this device, or else a sane guess.

    For more than 8 rows the guess is slices of two units at least: as many as a cluster has CTAs
    where the weights decide, and where x does, two rows of units in a CTA and enough CTAs.
    """
    tuned = tuning.settings(tuning.MATMUL, units_down, units_across, batch)
    if batch <= few_rows_mosaic_gpu.MAX_ROWS:
        if tuned is not None:
            return FewRowsConfig(tuned["warpgroups"])
        return few_rows_mosaic_gpu.guess(units_down, units_across)
    if tuned is not None:
        return MatmulConfig(tuned["splits"], tuned["stages"], tuned.get("down", 1))
    fitting = _fitting(units_across)
    if batch < _SHARED_ROWS:
        return MatmulConfig(fitting[-1], stages=2)
    down = 2 if units_down >= SMS else 1
    wanted = SMS * (2 if batch == _SHARED_ROWS else 1) * 31 // 32
    enough = (splits for splits in fitting if -(-units_down // down) * splits >= wanted)
    return MatmulConfig(next(enough, fitting[-1]), stages=2, down=down)


def candidates(units_down: int, units_across: int, batch: int) -> list[Config]:
    """Settings worth measuring."""
    if batch <= few_rows_mosaic_gpu.MAX_ROWS:
        return [
            FewRowsConfig(warpgroups)
            for warpgroups in (1, 2, 4)
            if warpgroups == 1 or WARPS * warpgroups <= units_across
        ]
    return [
        MatmulConfig(splits, stages, down)
        for splits in _fitting(units_across)[: 3 if batch > _SHARED_ROWS else None][-3:]
        for stages in (2, 3)
        for down in (DOWN if batch >= _SHARED_ROWS else DOWN[:1])
        if stages <= units_across // splits and down <= units_down
    ]


def _fitting(units_across: int) -> list[int]:
    return [splits for splits in SPLITS if splits == 1 or 2 * splits <= units_across]


def multiplies(rows: int, matrices: Sequence[TiledMatrix], residency: Residency | None) -> bool:
    """Whether `matmul` is the way to multiply so many rows of x.

    With more than one launch's, tiles are decoded as often: not if they go into pages meanwhile,
    and not where decoding is what takes time.
    """
    if rows <= MAX_ROWS:
        return True
    paged = residency is not None and residency.pages is not None
    return (
        rows <= _MOST_ROWS
        and not paged
        and all(t.is_dense or t.codec == "window" for t in matrices)
    )


def matmul(
    x: Input,
    matrices: Sequence[TiledMatrix],
    residency: Residency | None,
    first_tile: jax.Array,
    added: jax.Array | None = None,
    following: Sequence[TiledMatrix] = (),
    *,
    config: Config | None = None,
    interpret: bool = False,
) -> tuple[tuple[jax.Array, ...], Residency | None]:
    """float32[N, OUT] = bf16 x[N, K] times each decoded matrix, N as `multiplies` allows.

    The matrices' tiles follow one another in the page table. Every sum has the same order
    however its matrix is stored. What of an entropy-coded matrix is not resident is decoded to
    a dense matrix first, unless x has few rows and the codec is in FUSED. `added` and
    `following` are as in `kernels_pallas.matmul_all`.
    """
    if x.shape[0] > MAX_ROWS:
        options: dict[str, Any] = {"config": config, "interpret": interpret}
        whole, parts = value_of(x), []
        for first in range(0, whole.shape[0], MAX_ROWS):
            rows = slice(first, first + MAX_ROWS)
            more = None if added is None else added[rows]
            y, residency = matmul(
                whole[rows], matrices, residency, first_tile, more, following, **options
            )
            parts.append(y)
        return tuple(jnp.concatenate(each) for each in zip(*parts, strict=True)), residency
    units_down = sum(t.unit_grid[0] for t in matrices)
    units_across = matrices[0].unit_grid[1]
    config = config or choose_config(units_down, units_across, x.shape[0])
    splits = config.splits if isinstance(config, MatmulConfig) else 1
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
    if any(t.codec in ENTROPY_CODED for t in matrices):
        matrices, residency = _decoded(matrices, fused, residency, first_tile, interpret)
    products: list[jax.Array] = []
    for group in _together(matrices, fused):
        if isinstance(config, FewRowsConfig) and _is_coded(group[0], fused):
            y, residency = _fused(x, group, residency, first_tile, added, config, interpret)
        else:
            y, residency = _product(
                x, group, residency, first_tile, added, following, config, interpret
            )
        row = 0
        for t in group:
            products.append(y[:, row : row + t.shape[0]])
            row += t.unit_grid[0] * UNIT_ROWS
        first_tile += sum(t.tiles for t in group)
    return tuple(products), residency


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
    but: Sequence[str],
    residency: Residency | None,
    first_tile: jax.Array,
    interpret: bool,
) -> tuple[list[TiledMatrix], Residency | None]:
    """The entropy-coded matrices as dense ones, but those of some codecs; and the residency.

    Of the dense ones, resident tiles are meaningless.
    """
    dense: list[TiledMatrix] = []
    for t in matrices:
        tiles = t.tiles
        if _is_coded(t, ENTROPY_CODED) and t.codec not in but:
            w, residency = entropy_mosaic_gpu.decode(
                t, residency, first_tile, missing_only=True, interpret=interpret
            )
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
    following: Sequence[TiledMatrix],
    config: Config,
    interpret: bool,
) -> tuple[jax.Array, Residency | None]:
    """The product with matrices that fit together, and the residency."""
    stages, overlaid = 1, group[0].codec in ENTROPY_CODED
    if isinstance(config, MatmulConfig):
        stages = min(config.stages, group[0].unit_grid[1] // config.splits)
    stream, sources = UnitStream.of(group, residency, stages, Lanes(interpret), overlaid)
    if isinstance(config, MatmulConfig):
        stream, config = _that_fit(stream, config, x.shape[0])
    if added is not None:
        added = jnp.pad(added, ((0, 0), (0, stream.units_down * UNIT_ROWS - added.shape[1])))
    if isinstance(config, FewRowsConfig):
        arrays, ahead = stretches(following, residency)
        y, residency = few_rows_mosaic_gpu.multiply(
            x, added, sources, residency, first_tile, stream, config, arrays, ahead
        )
        return y, residency
    y, residency = _multiply(
        value_of(x), sources, residency, first_tile, stream, config.splits, config.down
    )
    return y if added is None else added + y, residency


def _rows_of(count: int) -> int:
    """Rows of x in the kernel, of which the last may be zeros."""
    return next(step for step in ROW_STEPS if step >= count)


def _buffers(stream: UnitStream, splits: int, down: int, count: int) -> dict[str, Any]:
    """Shared memory but for barriers, for `count` rows of x."""
    received = (down, stream.lanes.received_size(count, splits))
    x_shape = (stream.stages, _rows_of(count), UNIT_COLUMNS)
    return stream.scratch(staged=False, walks=(down,)) | {
        "received": plgpu.SMEM(received, jnp.float32),
        "x_buffer": plgpu.SMEM(x_shape, jnp.bfloat16, transforms=SWIZZLE_TRANSFORMS),
    }


def _that_fit(
    stream: UnitStream, config: MatmulConfig, count: int
) -> tuple[UnitStream, MatmulConfig]:
    """The same with as many rows of units a CTA, and then stages, as fit a multiprocessor.

    Pages take more shared memory than settings were measured with. The order of sums stays: it is
    that of `splits`.
    """
    while config.down > 1 or stream.stages > 1:
        buffers = _buffers(stream, config.splits, config.down, count).values()
        shared = sum(math.prod(each.shape) * each.dtype.itemsize for each in buffers)
        if shared <= _MOST_SHARED and config.down * _rows_of(count) <= _MOST_SUMS:
            break
        if config.down > 1:
            config = dataclasses.replace(config, down=config.down // 2)
        else:
            stream = dataclasses.replace(stream, stages=stream.stages - 1)
    return stream, config


@functools.partial(jax.jit, static_argnames=("stream", "splits", "down"))
def _multiply(
    x: jax.Array,
    sources: tuple[dict[str, jax.Array], ...],
    residency: Residency | None,
    first_tile: jax.Array,
    stream: UnitStream,
    splits: int,
    down: int,
) -> tuple[jax.Array, Residency | None]:
    """float32[N, rows of all the stream's units], and the residency afterwards."""
    rows = _rows_of(x.shape[0])
    interpret = stream.lanes.interpret
    least, longer = divmod(stream.units_across, splits)
    operands = stream.operands(sources, residency, first_tile)
    names = tuple(operands)
    padding = -x.shape[1] % UNIT_COLUMNS
    x_padded = jnp.pad(x, ((0, rows - x.shape[0]), (0, padding)))

    cta_rows = -(-stream.units_down // down)

    def body(
        *refs: Any, barriers: Any, x_arrived: Any, x_read: Any, x_buffer: Any, **scratch: Any
    ) -> None:
        bound = dict(zip((*names, "x", "out"), refs, strict=True))
        mine, split = jax.lax.axis_index("warpgroup"), jax.lax.axis_index("split")
        bound |= {name: ref.at[mine] for name, ref in scratch.items()}
        # Beyond the last row of units, the last is multiplied again: to the same bits.
        row = jax.lax.axis_index("row") * down + mine
        row = jnp.minimum(row, stream.units_down - 1)
        first_unit = split * least + jnp.minimum(split, longer)
        steps = least + (split < longer).astype(jnp.int32) if longer else least
        walk = UnitWalk.start(stream, bound, row, first_unit)

        def barrier(stage: Any) -> Any:
            return barriers.at[mine * stream.stages + stage]

        def fetch_x(step: Any, stage: Any) -> None:
            columns = pl.ds((first_unit + step) * UNIT_COLUMNS, UNIT_COLUMNS)
            part_of_x = bound["x"].at[:, columns]
            plgpu.copy_gmem_to_smem(part_of_x, x_buffer.at[stage], x_arrived.at[stage])

        @pl.when(mine == 0)
        def _() -> None:
            for stage in range(stream.stages):
                fetch_x(jnp.int32(stage), stage)

        for stage in range(stream.stages):
            walk.fetch(jnp.int32(stage), stage, barrier(stage))
        received = bound["received"]
        stream.lanes.prepare_sum(received, x.shape[0], splits)
        walk = walk.prepare()

        def accumulate(sums: Any) -> jax.Array:
            def multiply(step: jax.Array, carry: None) -> None:
                del carry
                stage = jax.lax.rem(step, stream.stages)
                plgpu.barrier_wait(barrier(stage))
                plgpu.barrier_wait(x_arrived.at[stage])
                x_unit = x_buffer.at[stage].transpose((1, 0))
                if stream.width is None:
                    plgpu.wgmma(sums, bound["units"].at[stage], x_unit)
                else:
                    staging = bound["units"].at[stage] if interpret else None
                    stream.lanes.multiply(sums, walk.unit(step, stage), x_unit, staging)
                walk.record(step)
                plgpu.wgmma_wait(0)
                # Every lane has read the stage's buffers.
                plgpu.commit_smem()

                @pl.when(step + stream.stages < steps)
                def _() -> None:
                    plgpu.barrier_arrive(x_read.at[stage])
                    walk.fetch(step + stream.stages, stage, barrier(stage))

                    @pl.when(mine == 0)
                    def _() -> None:
                        plgpu.barrier_wait(x_read.at[stage])
                        fetch_x(step + stream.stages, stage)

            jax.lax.fori_loop(0, steps, multiply, None)
            return sums[...]

        sums = pl.run_scoped(accumulate, plgpu.ACC((UNIT_ROWS, rows), jnp.float32))
        here = bound["out"].at[:, pl.ds(row * UNIT_ROWS, UNIT_ROWS)]
        if interpret:
            here = bound["out"].at[split, :, pl.ds(row * UNIT_ROWS, UNIT_ROWS)]
        stream.lanes.store_sum(here, received, sums, x.shape[0], splits)

    scratch = _buffers(stream, splits, down, x.shape[0]) | {
        "x_arrived": plgpu.Barrier(num_barriers=stream.stages),
        "x_read": plgpu.Barrier(num_arrivals=down, num_barriers=stream.stages),
        "barriers": plgpu.Barrier(
            num_arrivals=UnitWalk.arrivals(stream), num_barriers=down * stream.stages
        ),
    }
    shape: tuple[int, ...] = (x.shape[0], stream.units_down * UNIT_ROWS)
    # The interpreter does not add up: its CTAs are on their own.
    mesh: dict[str, Any] = {
        "grid": (cta_rows,),
        "grid_names": ("row",),
        "cluster": (splits,),
        "cluster_names": ("split",),
    }
    if interpret:
        mesh = {"grid": (cta_rows, splits), "grid_names": ("row", "split")}
        shape = (splits, *shape)
    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(shape, jnp.float32),
        num_threads=down,
        thread_name="warpgroup",
        scratch_types=scratch,
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(interpret),
        **mesh,
    )
    y = kernel(*operands.values(), x_padded)
    return (y.sum(axis=0) if interpret else y), stream.residency(residency, operands)
