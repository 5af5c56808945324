"""Product with few rows of x as a Mosaic GPU kernel: every warp loads, decodes and adds by itself.

What `matmul_mosaic_gpu` needs for the wide matrix unit (copy descriptors, barriers, a cluster that
exchanges sums) takes longer than a small matrix takes to read. Here a CTA has 16 whole rows: its
warps take turns along K and add up in shared memory, and each asks for its next weights before it
decodes those at hand.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.tiles import UNIT_ROWS, Residency
from kernels_pallas.few_rows_inputs import Rows
from kernels_pallas.inputs import Input
from kernels_pallas.lanes import LANE_LAYOUT, LANES
from kernels_pallas.mosaic import LANE_SEMANTICS, SMS, interpreter
from kernels_pallas.prefetch import Asking, Stretch
from kernels_pallas.stripe_stage import STRIPE_ROWS, StripeStage
from kernels_pallas.stripe_walk import StripePlace, StripeWalk, Words
from kernels_pallas.unit_stream import UnitStream
from kernels_pallas.warps import SUMS, WARP_LANES, WARPS, Warps

MAX_ROWS = 8
# Warps on each multiprocessor, one a CTA's warpgroup, from which a second one does not pay.
_ENOUGH_WARPS = 9


@dataclasses.dataclass(frozen=True)
class FewRowsConfig:
    """How the work is cut.

    Attributes:
      warpgroups: of a CTA, at most 8.
    """

    warpgroups: int


def guess(units_down: int, units_across: int) -> FewRowsConfig:
    """Two warpgroups a CTA, unless rows alone or short rows make one enough."""
    warps = units_down * WARPS * WARPS
    enough = warps >= SMS * _ENOUGH_WARPS or units_across < 2 * WARPS
    return FewRowsConfig(1 if enough else 2)


@functools.partial(jax.jit, static_argnames=("stream", "config", "ahead"))
def multiply(
    x: Input,
    added: jax.Array | None,
    sources: tuple[dict[str, jax.Array], ...],
    residency: Residency | None,
    first_tile: jax.Array,
    stream: UnitStream,
    config: FewRowsConfig,
    following: tuple[jax.Array, ...] = (),
    ahead: tuple[Stretch, ...] = (),
) -> tuple[jax.Array, Residency | None]:
    """float32[N, rows of all the stream's units] of bf16 x[N, K], and the residency afterwards.

    Args:
      x: N at most 8.
      added: float32 of the result's shape, to be added to it.
      residency, first_tile: as in `matmul_mosaic_gpu.matmul`.
      stream, sources: the matrices, as `UnitStream.of` gives them.
      config: how the work is cut.
      following, ahead: arrays, and stretches of them that the L2 cache is asked for.
    """
    warpgroups = config.warpgroups
    warps = Warps(stream.lanes.interpret)
    interpret, count = warps.interpret, x.shape[0]
    # Registers are scarce with pages; and several warpgroups copy x in less time than each warp
    # takes to load it where it is.
    shared = stream.buffered or warpgroups > 1
    rows = Rows.of(x, warps, warpgroups, stream.units_across, shared)
    operands = stream.operands(sources, residency, first_tile)
    operands |= rows.operands(x)
    if added is not None:
        operands["added"] = added
    operands |= {f"following.{number}": array for number, array in enumerate(following)}
    names = tuple(operands)
    ctas = stream.units_down * WARPS
    asking = min(ctas, Asking.of(stream.width is None).most_ctas)
    out_shape = (count, stream.units_down * UNIT_ROWS)
    units, at_once = stream.units_across, WARPS * warpgroups
    turns = -(-units // at_once)
    stage = StripeStage.of(warps, warpgroups, turns) if stream.width is None else None

    def body(*refs: Any, partial: Any, **scratch: Any) -> None:
        bound = dict(zip((*names, "out"), refs, strict=True)) | scratch
        row, mine = jax.lax.axis_index("row"), jax.lax.axis_index("warpgroup")
        of_each = ("entries", "slots", "stripes")
        bound |= {name: bound[name].at[mine] for name in of_each if name in bound}
        walk = StripeWalk.start(stream, warps, bound, row)

        def unit_of(turn: Any) -> jax.Array:
            """Which unit column the lane's warp has; beyond the end there is none."""
            first = (turn * at_once + mine * WARPS).astype(jnp.uint32)
            return plgpu.layout_cast(first + warps.warp(), LANE_LAYOUT)

        def place_of(unit: jax.Array) -> StripePlace:
            return walk.place(jnp.minimum(unit, jnp.uint32(units - 1)))

        def fetch(turn: Any) -> Words:
            return walk.fetch(place_of(unit_of(turn)))

        def stage_one(stage: StripeStage, turn: Any) -> None:
            walk.stage(place_of(unit_of(turn)), stage, stage.slot(turn))

        def take(turn: Any, place: StripePlace, fetched: Words, last: bool) -> tuple[Words, Words]:
            """The turn's 32 registers, and what is fetched for the turn after."""
            following: Words = ()
            if stage is not None:
                stage.wait()
                staged = stage.registers(bound["stripes"].at[stage.slot(turn)])
                later = turn + stage.slots
                if not last:
                    pl.when(later < turns)(functools.partial(stage_one, stage, later))
                    # Turns are counted, also those for which there is nothing to ask.
                    stage.asked()
                return tuple(staged), following
            if not last and not stream.buffered:
                following = fetch(turn + 1)
            registers = walk.registers(place, fetched)
            if not last and stream.buffered:
                # Held while others are decoded, these would take the registers of a fourth warp.
                following = fetch(turn + 1)
            return registers, following

        def add(turn: Any, fetched: Words, sums: Words, last: bool) -> tuple[Words, Words]:
            """What is fetched for the turn after, and the sums with this one's."""
            unit = unit_of(turn)
            place, inside = place_of(unit), unit < jnp.uint32(units)
            # What is in shared memory need not be held while weights are decoded.
            x_words = None if rows.held else rows.factors(bound, place.unit)
            registers, following = take(turn, place, fetched, last)
            walk.record(place, inside)
            x_words = x_words or rows.factors(bound, place.unit)
            # A unit's product begins with 0, as where units are multiplied apart.
            products = warps.multiply_in_warp((zero,) * SUMS, registers, x_words)
            if units % at_once:
                products = [jnp.where(inside, product, zero) for product in products]
            added = [total + product for total, product in zip(sums, products, strict=True)]
            return following, tuple(plgpu.layout_cast(total, LANE_LAYOUT) for total in added)

        def turn_once(turn: jax.Array, carry: tuple[Words, Words]) -> tuple[Words, Words]:
            return add(turn, *carry, last=False)

        def ask_ahead() -> None:
            """Asks for what the next kernel reads, if this is one of the last CTAs."""

            @pl.when((mine == 0) & (row >= ctas - asking))
            def _() -> None:
                for stretch in ahead:
                    ref, share = bound[f"following.{stretch.array}"], stretch.share(asking)
                    number = row - (ctas - asking)
                    warps.prefetch(ref, number, stretch.start, stretch.size, share)

        zero = plgpu.layout_cast(jnp.zeros(LANES, jnp.float32), LANE_LAYOUT)
        asked = rows.ask(bound, mine)
        fetched: Words = ()
        if stage is None:
            fetched = fetch(jnp.int32(0))
        else:
            for turn in range(stage.slots):
                stage_one(stage, jnp.int32(turn))
                stage.asked()
        # What is asked for behind the barrier in `Rows.prepare` would be waited for once more.
        walk = walk.prepare()
        rows.prepare(bound, mine, asked)
        fetched, sums = jax.lax.fori_loop(0, turns - 1, turn_once, (fetched, (zero,) * SUMS))

        # While the last unit is decoded nothing else is read. Dense weights are still on their way
        # here, and would come later for it.
        if stage is None:
            ask_ahead()

        # Of the warps' sums, which are as in `Warps.multiply_in_warp`, each lane adds up one: rows
        # of weights by rows of x are no more than lanes.
        n, down = warps.index() // STRIPE_ROWS, warps.index() % STRIPE_ROWS
        x_row = jnp.minimum(n, jnp.uint32(count - 1))
        place = x_row * jnp.uint32(out_shape[1]) + row.astype(jnp.uint32) * STRIPE_ROWS + down
        # What comes to a sum is asked for before the last unit is decoded.
        factor = rows.factor(bound, x_row)
        rest = [] if added is None else warps.load(bound["added"], place, [0], early=True)
        _, sums = add(jnp.int32(turns - 1), fetched, sums, last=True)
        if stage is not None:
            ask_ahead()
        words = [jax.lax.bitcast_convert_type(total, jnp.uint32) for total in sums]
        warps.keep(partial, mine, words)
        warps.collect(bound, mine, warpgroups)

        @pl.when(mine == 0)
        def finish() -> None:
            held = (down % 8 * 4 + n // 2) * SUMS + down // 8 * 2 + n % 2
            total = zero
            for warpgroup in range(warpgroups):
                for warp in range(WARPS):
                    index = held + jnp.uint32(warp * WARP_LANES * SUMS)
                    word = warps.gather(partial.at[warpgroup], index)
                    total += jax.lax.bitcast_convert_type(word, jnp.float32)
            if factor is not None:
                total *= factor
            for word in rest:
                total += jax.lax.bitcast_convert_type(word, jnp.float32)
            if interpret:
                columns = pl.ds(row * STRIPE_ROWS, STRIPE_ROWS)
                bound["out"][:, columns] = total.reshape(-1, STRIPE_ROWS)[:count]
                return
            inside = jnp.where(n < jnp.uint32(count), jnp.uint32(1), jnp.uint32(0))
            words = [jax.lax.bitcast_convert_type(total, jnp.uint32)]
            warps.store(bound["out"], place, (0,), words, inside)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(out_shape, jnp.float32),
        grid=(ctas,),
        grid_names=("row",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        scratch_types=StripeWalk.scratch(stream, warpgroups)
        | rows.scratch()
        | ({} if stage is None else stage.scratch(warpgroups))
        | warps.meeting(warpgroups)
        | {"partial": plgpu.SMEM((warpgroups, LANES, SUMS), jnp.uint32)},
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(interpret),
    )
    y = kernel(*operands.values())
    return y, stream.residency(residency, operands)
