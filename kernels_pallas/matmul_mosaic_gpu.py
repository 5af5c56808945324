"""Fused matmul as a Mosaic GPU kernel: units are decoded on their way to the matrix unit.

Each CTA multiplies one row of units by a slice of K; the slices' sums are added afterwards in
a fixed order. x is at most 64 rows, padded to a width that wgmma has. Matrices that multiply the
same x are one launch: a small one alone would leave most of the GPU idle.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, Residency, TiledMatrix
from kernels_pallas.lanes import SWIZZLE_TRANSFORMS, Lanes
from kernels_pallas.mosaic import LANE_SEMANTICS, SMS, interpreter
from kernels_pallas.unit_stream import MAX_TILES_ACROSS, UnitStream
from kernels_pallas.unit_walk import UnitWalk

MAX_ROWS = 64
ROW_STEPS = (8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class MatmulConfig:
    """How the work is cut.

    Attributes:
      splits: slices of K, each a CTA; divides the units across.
      stages: units in flight in each CTA.
    """

    splits: int
    stages: int


def choose_config(units_down: int, units_across: int) -> MatmulConfig:
    """A split that gives every SM eight CTAs where it can."""
    wanted = -(-8 * SMS // units_down)
    divisors = [d for d in range(1, units_across + 1) if units_across % d == 0]
    fitting = [d for d in divisors if units_across // d <= 2 * MAX_TILES_ACROSS]
    splits = next((d for d in fitting if d >= wanted), fitting[-1])
    return MatmulConfig(splits, stages=2)


def matmul(
    x: jax.Array,
    matrices: Sequence[TiledMatrix],
    residency: Residency | None,
    first_tile: jax.Array,
    *,
    config: MatmulConfig | None = None,
    interpret: bool = False,
) -> tuple[tuple[jax.Array, ...], Residency | None]:
    """float32[N, OUT] = bf16 x[N, K] times each decoded matrix, N <= 64.

    The matrices' tiles follow one another in the page table. Every sum has the same order
    however its matrix is stored.
    """
    units_down = sum(t.unit_grid[0] for t in matrices)
    units_across = matrices[0].unit_grid[1]
    config = config or choose_config(units_down, units_across)
    stages = min(config.stages, units_across // config.splits)
    together = [list(matrices)]
    if not UnitStream.fit_together(matrices):
        together = [[t] for t in matrices]
    products: list[jax.Array] = []
    for group in together:
        stream, sources = UnitStream.of(group, residency, stages, Lanes(interpret))
        y, residency = _multiply(x, sources, residency, first_tile, stream, config.splits)
        firsts = [part.first_row * UNIT_ROWS for part in stream.parts]
        products += [
            y[:, first : first + t.shape[0]] for t, first in zip(group, firsts, strict=True)
        ]
        first_tile += sum(t.tiles for t in group)
    return tuple(products), residency


@functools.partial(jax.jit, static_argnames=("stream", "splits"))
def _multiply(
    x: jax.Array,
    sources: tuple[dict[str, jax.Array], ...],
    residency: Residency | None,
    first_tile: jax.Array,
    stream: UnitStream,
    splits: int,
) -> tuple[jax.Array, Residency | None]:
    """float32[N, rows of all the stream's units], and the residency afterwards."""
    rows = next(step for step in ROW_STEPS if step >= x.shape[0])
    steps, interpret = stream.units_across // splits, stream.lanes.interpret
    operands = stream.operands(sources, residency, first_tile)
    names = tuple(operands)
    padding = stream.units_across * UNIT_COLUMNS - x.shape[1]
    x_padded = jnp.pad(x, ((0, rows - x.shape[0]), (0, padding)))

    def body(*refs: Any, barriers: Any, x_buffer: Any, **scratch: Any) -> None:
        bound = dict(zip((*names, "x", "out"), refs, strict=True)) | scratch
        row, split = jax.lax.axis_index("row"), jax.lax.axis_index("split")
        first_unit = split * steps
        walk = UnitWalk.start(stream, bound, row, first_unit, steps)

        def fetch(step: Any, stage: Any) -> None:
            columns = pl.ds((first_unit + step) * UNIT_COLUMNS, UNIT_COLUMNS)
            barrier = barriers.at[stage]
            plgpu.copy_gmem_to_smem(bound["x"].at[:, columns], x_buffer.at[stage], barrier)
            walk.fetch(step, stage, barrier)

        for stage in range(stream.stages):
            fetch(jnp.int32(stage), stage)
        walk, next_escapes = walk.prepare()

        def accumulate(sums: Any) -> jax.Array:
            def multiply(step: jax.Array, escapes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                stage = jax.lax.rem(step, stream.stages)
                walk.deliver(step + 1, escapes)
                plgpu.barrier_wait(barriers.at[stage])
                escapes = walk.next_escapes(step + 2)
                x_unit = x_buffer.at[stage].transpose((1, 0))
                if stream.width is None:
                    plgpu.wgmma(sums, bound["units"].at[stage], x_unit)
                else:
                    staging = bound["units"].at[stage] if interpret else None
                    stream.lanes.multiply(sums, walk.unit(step, stage), x_unit, staging)
                walk.record(step)
                plgpu.wgmma_wait(0)
                # Every lane has read the stage's buffers and delivered the next step's escapes.
                plgpu.commit_smem()

                @pl.when(step + stream.stages < steps)
                def _() -> None:
                    fetch(step + stream.stages, stage)

                return escapes

            jax.lax.fori_loop(0, steps, multiply, next_escapes)
            return sums[...]

        sums = pl.run_scoped(accumulate, plgpu.ACC((UNIT_ROWS, rows), jnp.float32))
        here = bound["out"].at[split, :, pl.ds(row * UNIT_ROWS, UNIT_ROWS)]
        stream.lanes.store_columns(here, sums, x.shape[0])

    scratch = stream.scratch(staged=False) | {
        "x_buffer": plgpu.SMEM(
            (stream.stages, rows, UNIT_COLUMNS), jnp.bfloat16, transforms=SWIZZLE_TRANSFORMS
        ),
        "barriers": plgpu.Barrier(num_arrivals=2, num_barriers=stream.stages),
    }
    out_rows = stream.units_down * UNIT_ROWS
    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((splits, x.shape[0], out_rows), jnp.float32),
        grid=(stream.units_down, splits),
        grid_names=("row", "split"),
        scratch_types=scratch,
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(interpret),
    )
    partial_sums = kernel(*operands.values(), x_padded)
    return partial_sums.sum(axis=0), stream.residency(residency, operands)
