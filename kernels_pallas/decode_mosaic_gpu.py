"""Decode as Mosaic GPU kernels, dense or into pages: units are decoded, then copied."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, Residency, TiledMatrix
from kernels_pallas import entropy_mosaic_gpu, tuning
from kernels_pallas.entropy_mosaic_gpu import ENTROPY_CODED
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
    """What was measured to be fastest on this device, or else a sane guess.

    The guess is walks that keep copies in flight, and short enough for several CTAs on every SM.
    """
    tuned = tuning.settings(tuning.DECODE, units_down, units_across, None)
    if tuned is not None:
        return DecodeConfig(tuned["steps"], tuned["stages"])
    divisors = _divisors(units_across, MAX_STEPS)
    fitting = [d for d in divisors if units_down * (units_across // d) >= 4 * SMS]
    steps = max(fitting, default=1)
    return DecodeConfig(steps, stages=min(2, steps))


def candidates(units_down: int, units_across: int) -> list[DecodeConfig]:
    """Settings worth measuring."""
    del units_down
    return [
        DecodeConfig(steps, stages)
        for steps in _divisors(units_across, 2 * MAX_STEPS)[-4:]
        for stages in (2, 3)
        if stages <= steps
    ]


def _divisors(units_across: int, most: int) -> list[int]:
    return [d for d in range(1, most + 1) if units_across % d == 0]


def decode(
    t: TiledMatrix,
    residency: Residency | None,
    first_tile: jax.Array,
    *,
    config: DecodeConfig | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, Residency | None]:
    """bf16[OUT, K], reading resident tiles from their pages and filling pages as told.

    Args:
      t, residency, first_tile: as in `kernels_pallas.decode`.
      config: how the work is cut, for codec window; None for what is known to be fast.
      interpret: run in the Pallas interpreter.
    """
    if t.is_dense:
        return t.arrays["dense"], residency
    if t.codec in ENTROPY_CODED:
        assert config is None
        return entropy_mosaic_gpu.decode(t, residency, first_tile, interpret=interpret)
    return _decode(t, residency, first_tile, config, interpret)


def fill(
    t: TiledMatrix,
    residency: Residency,
    first_tile: jax.Array,
    *,
    config: DecodeConfig | None = None,
    interpret: bool = False,
) -> Residency:
    """The residency with pages filled as told; tiles that fill none are not decoded."""
    if t.is_dense or residency.pages is None:
        return residency
    if t.codec in ENTROPY_CODED:
        assert config is None
        return entropy_mosaic_gpu.fill(t, residency, first_tile, interpret=interpret)
    return _fill(t, residency, first_tile, config, interpret)


@functools.partial(jax.jit, static_argnames=("config", "interpret"))
def _decode(
    t: TiledMatrix,
    residency: Residency | None,
    first_tile: jax.Array,
    config: DecodeConfig | None,
    interpret: bool,
) -> tuple[jax.Array, Residency | None]:
    config = config or choose_config(*t.unit_grid)
    steps = config.steps
    stream, sources = UnitStream.of((t,), residency, config.stages, Lanes(interpret))
    operands = stream.operands(sources, residency, first_tile)
    names = tuple(operands)

    def body(*refs: Any, barriers: Any, **scratch: Any) -> None:
        bound = dict(zip((*names, "out"), refs, strict=True)) | scratch
        row, part = jax.lax.axis_index("row"), jax.lax.axis_index("part")
        walk = UnitWalk.start(stream, bound, row, part * steps)
        for stage in range(stream.stages):
            walk.fetch(jnp.int32(stage), stage, barriers.at[stage])
        walk = walk.prepare()

        def fetch_ahead(step: jax.Array) -> None:
            @pl.when(step + stream.stages < steps)
            def _() -> None:
                stage = jax.lax.rem(step, stream.stages)
                walk.fetch(step + stream.stages, stage, barriers.at[stage])

        def copy_out(step: jax.Array, carry: None) -> None:
            del carry
            stage = jax.lax.rem(step, stream.stages)
            plgpu.barrier_wait(barriers.at[stage])
            if not stream.buffered:
                # The copy out of what was decoded into this stage's unit before.
                plgpu.wait_smem_to_gmem(stream.stages - 1, wait_read_only=True)
            walk.stage_decoded(step, stage)
            walk.record(step)
            plgpu.commit_smem()
            rows = pl.ds(row * UNIT_ROWS, UNIT_ROWS)
            columns = pl.ds((part * steps + step) * UNIT_COLUMNS, UNIT_COLUMNS)
            plgpu.copy_smem_to_gmem(bound["units"].at[stage], bound["out"].at[rows, columns])
            if not stream.buffered:
                fetch_ahead(step)
                return

            # A unit may be fetched to where the previous step's is copied out from.
            @pl.when(step > 0)
            def _() -> None:
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                fetch_ahead(step - 1)

        jax.lax.fori_loop(0, steps, copy_out, None)
        plgpu.wait_smem_to_gmem(0)

    shape = (stream.units_down * UNIT_ROWS, stream.units_across * UNIT_COLUMNS)
    kernel = _kernel(body, stream, steps, jax.ShapeDtypeStruct(shape, jnp.bfloat16))
    w = kernel(*operands.values())[: t.shape[0], : t.shape[1]]
    return w, stream.residency(residency, operands)


@functools.partial(jax.jit, static_argnames=("config", "interpret"))
def _fill(
    t: TiledMatrix,
    residency: Residency,
    first_tile: jax.Array,
    config: DecodeConfig | None,
    interpret: bool,
) -> Residency:
    config = config or choose_config(*t.unit_grid)
    steps = config.steps
    stream, sources = UnitStream.of((t,), residency, config.stages, Lanes(interpret))
    operands = stream.operands(sources, residency, first_tile)
    names = tuple(operands)

    def body(*refs: Any, barriers: Any, **scratch: Any) -> None:
        bound = dict(zip(names, refs, strict=True)) | scratch
        row, part = jax.lax.axis_index("row"), jax.lax.axis_index("part")
        walk = UnitWalk.start(stream, bound, row, part * steps)

        def fetch(step: jax.Array, stage: Any) -> None:
            @pl.when(walk.fills(step))
            def _() -> None:
                walk.fetch(step, stage, barriers.at[stage])

        for stage in range(stream.stages):
            fetch(jnp.int32(stage), stage)
        walk = walk.prepare()

        def fill_page(step: jax.Array, carry: None) -> None:
            del carry
            stage = jax.lax.rem(step, stream.stages)

            @pl.when(walk.fills(step))
            def _() -> None:
                plgpu.barrier_wait(barriers.at[stage])
                decoded = walk.decoded(stage)
                # The copy out of what was decoded into this stage's unit before.
                plgpu.wait_smem_to_gmem(stream.stages - 1, wait_read_only=True)
                bound["units"].at[stage][...] = decoded
                plgpu.commit_smem()
                walk.copy_to_page(step, stage)

            walk.record(step, walk.fills(step))
            # Every step has a group of copies, be it empty, so that the wait finds its own.
            plgpu.commit_smem_to_gmem_group()

            @pl.when(step + stream.stages < steps)
            def _() -> None:
                fetch(step + stream.stages, stage)

        jax.lax.fori_loop(0, steps, fill_page, None)
        plgpu.wait_smem_to_gmem(0)

    _kernel(body, stream, steps, ())(*operands.values())
    return stream.residency(residency, operands) or residency


def _kernel(body: Any, stream: UnitStream, steps: int, out_type: Any) -> Any:
    """The kernel whose CTAs walk through `steps` units each."""
    arrivals = UnitWalk.arrivals(stream)
    barriers = plgpu.Barrier(num_arrivals=arrivals, num_barriers=stream.stages)
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=(stream.units_down, stream.units_across // steps),
        grid_names=("row", "part"),
        scratch_types=stream.scratch(staged=True) | {"barriers": barriers},
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(stream.lanes.interpret),
    )
