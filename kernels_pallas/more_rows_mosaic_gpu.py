"""Product with more rows of x as a Mosaic GPU kernel: units go to the wide matrix unit.

Each CTA multiplies a few rows of units, one a warpgroup, by a slice of K of up to 256 rows of x,
which they share. The CTAs of the same rows are a cluster, which adds their sums in a fixed order
through shared memory. With 256 rows of x, each decodes units while the matrix unit is at work.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS, Residency
from kernels_pallas.cluster_sum import ClusterSum
from kernels_pallas.lanes import SWIZZLE_TRANSFORMS
from kernels_pallas.mosaic import LANE_SEMANTICS, interpreter
from kernels_pallas.unit_stream import UnitStream
from kernels_pallas.unit_walk import UnitWalk

# Of x, what a CTA multiplies at most, and what it is padded to.
MAX_ROWS = 256
ROW_STEPS = (16, 32, 64, 128, MAX_ROWS)
# Of shared memory, what a CTA may have on Hopper less some for barriers and alignment.
_MOST_SHARED = 223 * 2**10
# Rows of units times rows of x of a CTA, whose sums leave enough registers for the rest.
_MOST_SUMS = 512


@dataclasses.dataclass(frozen=True)
class MoreRowsConfig:
    """How the work is cut for more than 8 rows.

    Attributes:
      splits: slices of K, each a CTA of a cluster of at most 8.
      stages: units in flight in each row of units of a CTA.
      down: rows of units of a CTA.
    """

    splits: int
    stages: int
    down: int = 1


def _cut(count: int) -> tuple[int, int]:
    """Into how many parts so many rows of x are cut, and the rows of a part.

    Of the last part, the last rows may be zeros.
    """
    parts = -(-count // MAX_ROWS)
    return parts, next(step for step in ROW_STEPS if step * parts >= count)


def _buffers(stream: UnitStream, config: MoreRowsConfig, count: int) -> dict[str, Any]:
    """Shared memory but for barriers, for `count` rows of x."""
    _, rows = _cut(count)
    cluster_sum = ClusterSum(stream.lanes, min(count, rows), config.splits)
    received = (config.down, cluster_sum.received_size)
    x_shape = (stream.stages, rows, UNIT_COLUMNS)
    buffers = stream.scratch(staged=False, walks=(config.down,)) | {
        "received": plgpu.SMEM(received, jnp.float32),
        "x_buffer": plgpu.SMEM(x_shape, jnp.bfloat16, transforms=SWIZZLE_TRANSFORMS),
    }
    if stream.lanes.interpret and stream.width is not None:
        # A stage's unit may be another's by then.
        unit = (config.down, UNIT_ROWS, UNIT_COLUMNS)
        buffers["staging"] = plgpu.SMEM(unit, jnp.bfloat16, transforms=SWIZZLE_TRANSFORMS)
    return buffers


def that_fit(
    stream: UnitStream, config: MoreRowsConfig, count: int
) -> tuple[UnitStream, MoreRowsConfig]:
    """The same with as many rows of units a CTA, and then stages, as fit a multiprocessor.

    Pages take more shared memory than settings were measured with. The order of sums stays: it is
    that of `splits`.
    """
    while config.down > 1 or stream.stages > 1:
        buffers = _buffers(stream, config, count).values()
        shared = sum(math.prod(each.shape) * each.dtype.itemsize for each in buffers)
        if shared <= _MOST_SHARED and config.down * _cut(count)[1] <= _MOST_SUMS:
            break
        if config.down > 1:
            config = dataclasses.replace(config, down=config.down // 2)
        else:
            stream = dataclasses.replace(stream, stages=stream.stages - 1)
    return stream, config


@functools.partial(jax.jit, static_argnames=("stream", "config"))
def multiply(
    x: jax.Array,
    sources: tuple[dict[str, jax.Array], ...],
    residency: Residency | None,
    first_tile: jax.Array,
    stream: UnitStream,
    config: MoreRowsConfig,
) -> tuple[jax.Array, Residency | None]:
    """float32[N, rows of all the stream's units], and the residency afterwards."""
    splits, down, count = config.splits, config.down, x.shape[0]
    parts, rows = _cut(count)
    interpret = stream.lanes.interpret
    # Fewer rows are multiplied in less time than it takes to wait once more for all lanes.
    ahead = rows == MAX_ROWS and stream.width is not None
    # With one warpgroup, what it waits for can come together.
    together = down == 1 and not ahead
    # What the last part has too many is not stored, but by the interpreter.
    columns = min(count, rows)
    cluster_sum = ClusterSum(stream.lanes, columns, splits)
    least, longer = divmod(stream.units_across, splits)
    operands = stream.operands(sources, residency, first_tile)
    names = tuple(operands)
    padding = -x.shape[1] % UNIT_COLUMNS
    x_padded = jnp.pad(x, ((0, parts * rows - count), (0, padding)))

    cta_rows = -(-stream.units_down // down)

    def body(
        *refs: Any, barriers: Any, x_arrived: Any, x_read: Any, x_buffer: Any, **scratch: Any
    ) -> None:
        bound = dict(zip((*names, "x", "out"), refs, strict=True))
        mine, split = jax.lax.axis_index("warpgroup"), jax.lax.axis_index("split")
        first_row = jax.lax.axis_index("part") * rows
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
            k = pl.ds((first_unit + step) * UNIT_COLUMNS, UNIT_COLUMNS)
            part_of_x = bound["x"].at[pl.ds(first_row, rows), k]
            plgpu.copy_gmem_to_smem(
                part_of_x, x_buffer.at[stage], barrier(stage) if together else x_arrived.at[stage]
            )

        @pl.when(mine == 0)
        def _() -> None:
            for stage in range(stream.stages):
                fetch_x(jnp.int32(stage), stage)

        for stage in range(stream.stages):
            walk.fetch(jnp.int32(stage), stage, barrier(stage))
        received = bound["received"]
        cluster_sum.prepare(received)
        walk = walk.prepare()

        def fetch(step: Any) -> None:
            """Fetches another unit into the step's buffers, which all lanes have read."""
            stage = jax.lax.rem(step, stream.stages)

            @pl.when(step + stream.stages < steps)
            def _() -> None:
                walk.fetch(step + stream.stages, stage, barrier(stage))

        def unit(step: Any) -> jax.Array:
            """bf16[64, 128]: the step's, decoded."""
            stage = jax.lax.rem(step, stream.stages)
            plgpu.barrier_wait(barrier(stage))
            return plgpu.layout_cast(walk.unit(step, stage), plgpu.Layout.WGMMA)

        def start_product(sums: Any, step: Any, decoded: jax.Array | None) -> None:
            """Starts the product with a unit: the step's, dense, if none is given."""
            stage = jax.lax.rem(step, stream.stages)
            if not together:
                plgpu.barrier_wait(x_arrived.at[stage])
            x_unit = x_buffer.at[stage].transpose((1, 0))
            if decoded is None:
                plgpu.barrier_wait(barrier(stage))
                plgpu.wgmma(sums, bound["units"].at[stage], x_unit)
            else:
                stream.lanes.multiply(sums, decoded, x_unit, bound.get("staging"))
            walk.record(step)

        def finish(step: Any) -> None:
            """Waits for the step's product, and fetches more of x once all have theirs."""
            stage = jax.lax.rem(step, stream.stages)
            plgpu.wgmma_wait(0)
            stream.lanes.meet()
            if not ahead:
                fetch(step)

            @pl.when(step + stream.stages < steps)
            def _() -> None:
                if down == 1:
                    fetch_x(step + stream.stages, stage)
                    return
                plgpu.barrier_arrive(x_read.at[stage])

                @pl.when(mine == 0)
                def _() -> None:
                    plgpu.barrier_wait(x_read.at[stage])
                    fetch_x(step + stream.stages, stage)

        def accumulate(sums: Any) -> jax.Array:
            def one_by_one(step: jax.Array, carry: None) -> None:
                del carry
                start_product(sums, step, None if stream.width is None else unit(step))
                finish(step)

            def unit_ahead(step: Any) -> jax.Array:
                decoded = unit(step)
                stream.lanes.meet()
                fetch(step)
                return decoded

            def decoding_ahead(step: jax.Array, decoded: jax.Array) -> jax.Array:
                start_product(sums, step, decoded)
                following = unit_ahead(step + 1)
                finish(step)
                return stream.lanes.settled(following)

            if ahead:
                first = unit_ahead(jnp.int32(0))
                last = jax.lax.fori_loop(0, steps - 1, decoding_ahead, first)
                start_product(sums, jnp.int32(steps - 1), last)
            else:
                jax.lax.fori_loop(0, steps, one_by_one, None)
            return sums[...]

        sums = pl.run_scoped(accumulate, plgpu.ACC((UNIT_ROWS, rows), jnp.float32))
        place = (pl.ds(first_row, columns), pl.ds(row * UNIT_ROWS, UNIT_ROWS))
        here = bound["out"].at[(split, *place) if interpret else place]
        inside = count - first_row if count % columns else None
        cluster_sum.store(here, received, sums, inside)

    scratch = _buffers(stream, config, count) | {
        "x_arrived": plgpu.Barrier(num_barriers=stream.stages),
        "x_read": plgpu.Barrier(num_arrivals=down, num_barriers=stream.stages),
        "barriers": plgpu.Barrier(
            num_arrivals=UnitWalk.arrivals(stream) + together, num_barriers=down * stream.stages
        ),
    }
    shape: tuple[int, ...] = (count, stream.units_down * UNIT_ROWS)
    # Parts of x next to one another, so that they find their weights in the L2 cache.
    mesh: dict[str, Any] = {
        "grid": (cta_rows, parts),
        "grid_names": ("row", "part"),
        "cluster": (splits,),
        "cluster_names": ("split",),
    }
    # The interpreter does not add up: its CTAs are on their own. It stores whole parts.
    if interpret:
        mesh = {"grid": (cta_rows, parts, splits), "grid_names": ("row", "part", "split")}
        shape = (splits, parts * columns, shape[1])
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
    y = y.sum(axis=0)[:count] if interpret else y
    return y, stream.residency(residency, operands)
