"""Dense decode as a Mosaic GPU kernel: units are decoded and copied to their place."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, Residency, TiledMatrix
from kernels_pallas.lanes import Lanes
from kernels_pallas.mosaic import LANE_SEMANTICS, SMS, interpreter
from kernels_pallas.unit_stream import UnitStream
from kernels_pallas.unit_walk import UnitWalk

MAX_STEPS = 8


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How the work is cut.

    Attributes:
      steps: units each CTA decodes; divides the units across.
      stages: units in flight in each CTA, at most `steps`. A buffer is filled again one step
        after its use, so several steps need two.
    """

    steps: int
    stages: int

    def __post_init__(self) -> None:
        if not min(self.steps, 2) <= self.stages <= self.steps:
            raise ValueError(f"{self.stages} stages cannot serve {self.steps} steps")


def choose_config(units_down: int, units_across: int) -> DecodeConfig:
    """Walks that keep copies in flight, and short enough for several CTAs on every SM."""
    divisors = [d for d in range(1, MAX_STEPS + 1) if units_across % d == 0]
    fitting = [d for d in divisors if units_down * (units_across // d) >= 4 * SMS]
    steps = max(fitting, default=1)
    return DecodeConfig(steps, stages=min(2, steps))


@functools.partial(jax.jit, static_argnames=("config", "interpret"))
def decode(
    t: TiledMatrix,
    residency: Residency | None,
    first_tile: jax.Array,
    *,
    config: DecodeConfig | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, Residency | None]:
    """bf16[OUT, K], reading resident tiles from their pages and filling pages as told."""
    if t.is_dense:
        return t.arrays["dense"], residency
    config = config or choose_config(*t.unit_grid)
    steps = config.steps
    stream, sources = UnitStream.of((t,), residency, config.stages, Lanes(interpret))
    operands = stream.operands(sources, residency, first_tile)
    names = tuple(operands)

    def body(*refs: Any, barriers: Any, **scratch: Any) -> None:
        bound = dict(zip((*names, "out"), refs, strict=True)) | scratch
        row, part = jax.lax.axis_index("row"), jax.lax.axis_index("part")
        walk = UnitWalk.start(stream, bound, row, part * steps, steps)
        for stage in range(stream.stages):
            walk.fetch(jnp.int32(stage), stage, barriers.at[stage])
        walk, next_escapes = walk.prepare()

        def copy_out(step: jax.Array, escapes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            stage = jax.lax.rem(step, stream.stages)
            walk.deliver(step + 1, escapes)
            plgpu.barrier_wait(barriers.at[stage])
            escapes = walk.next_escapes(step + 2)
            walk.stage_decoded(step, stage)
            walk.record(step)
            # The next step's escapes are delivered.
            plgpu.commit_smem()
            rows = pl.ds(row * UNIT_ROWS, UNIT_ROWS)
            columns = pl.ds((part * steps + step) * UNIT_COLUMNS, UNIT_COLUMNS)
            plgpu.copy_smem_to_gmem(bound["units"].at[stage], bound["out"].at[rows, columns])

            # The previous step's buffer is refilled once its copy out has been read.
            previous = step - 1

            @pl.when((step > 0) & (previous + stream.stages < steps))
            def _() -> None:
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                walk.fetch(
                    previous + stream.stages,
                    jax.lax.rem(previous, stream.stages),
                    barriers.at[jax.lax.rem(previous, stream.stages)],
                )

            return escapes

        jax.lax.fori_loop(0, steps, copy_out, next_escapes)
        plgpu.wait_smem_to_gmem(0)

    shape = (stream.units_down * UNIT_ROWS, stream.units_across * UNIT_COLUMNS)
    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        grid=(stream.units_down, stream.units_across // steps),
        grid_names=("row", "part"),
        scratch_types=stream.scratch(staged=True)
        | {"barriers": plgpu.Barrier(num_arrivals=1, num_barriers=stream.stages)},
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(interpret),
    )
    w = kernel(*operands.values())[: t.shape[0], : t.shape[1]]
    return w, stream.residency(residency, operands)
