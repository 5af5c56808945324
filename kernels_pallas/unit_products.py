"""Products of single units with few rows of x, and their sums in the order of every such product.

A kernel that decodes units in an order of its own can't add them up as `few_rows_mosaic_gpu` does:
other warpgroups, on other multiprocessors, have the rest of their row. So it stores each unit's
product, 4 bytes for 128 weights, and another kernel adds them, in that order: to the same bits.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.tiles import UNIT_ROWS
from kernels_pallas.emit import LANE_LAYOUT, LANES
from kernels_pallas.few_rows_inputs import Rows
from kernels_pallas.few_rows_mosaic_gpu import FewRowsConfig
from kernels_pallas.inputs import Input, Made, Normed
from kernels_pallas.mosaic import LANE_SEMANTICS, interpreter
from kernels_pallas.warps import SUMS, WARPS, Warps

# Warpgroups that make a row of x.
_MAKERS = 4


@dataclasses.dataclass(frozen=True)
class UnitProducts:
    """How a kernel multiplies the units that its warpgroups have in registers.

    Attributes:
      warps: operations on lanes.
      rows: of x, at most 8.
      shape: (units across, N, rows of weights): of the products, float32.
    """

    warps: Warps
    rows: Rows
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, x: jax.Array, warps: Warps, unit_grid: tuple[int, int]) -> "UnitProducts":
        """For a matrix of so many units down and across."""
        down, across = unit_grid
        # The kernel that adds up has whole warpgroups of rows.
        height = -(-down * UNIT_ROWS // LANES) * LANES
        # Nothing of an array depends on how many warpgroups a CTA has.
        rows = Rows.of(x, warps, 1, across)
        return cls(warps, rows, (across, rows.count, height))

    def put(
        self,
        refs: dict[str, Any],
        row: jax.Array,
        unit: jax.Array,
        registers: list[jax.Array],
    ) -> None:
        """Multiplies a unit and stores the product in refs["products"].

        Args:
          refs: those that `rows` needs, and the products.
          row: int32 scalar, the unit's first row.
          unit: int32 scalar, its unit column.
          registers: 32 of uint32[128], as in `window_layout`.
        """
        warps, (_, count, height) = self.warps, self.shape
        zero = plgpu.layout_cast(jnp.zeros(LANES, jnp.float32), LANE_LAYOUT)
        lane, none = warps.lane(), jnp.uint32(0) * warps.index()
        x_words = self.rows.factors(refs, none + unit.astype(jnp.uint32))
        sums = warps.multiply_in_warp((zero,) * SUMS, registers, x_words)
        if warps.interpret:
            # Halves of rows of weights, parity of rows of x, warps, rows of a half, rows of x.
            apart = jnp.stack(sums).reshape(2, 2, WARPS, 8, 4)
            product = apart.transpose(2, 0, 3, 4, 1).reshape(UNIT_ROWS, 8)
            refs["products"][unit, :, pl.ds(row, UNIT_ROWS)] = product[:, :count].T
            return
        words = [jax.lax.bitcast_convert_type(total, jnp.uint32) for total in sums]
        first = row.astype(jnp.uint32) + warps.warp() * jnp.uint32(UNIT_ROWS // WARPS) + lane // 4
        for parity in range(min(count, 2)):
            at = lane % 4 * 2 + jnp.uint32(parity)
            inside = jnp.where(at < jnp.uint32(count), jnp.uint32(1), jnp.uint32(0))
            index = (unit.astype(jnp.uint32) * jnp.uint32(count) + at) * jnp.uint32(height) + first
            warps.store(refs["products"], index, (0, 8), words[parity::2], inside)


@functools.partial(jax.jit, static_argnames=("units", "interpret"))
def made_rows(x: Made, units: int, interpret: bool) -> jax.Array:
    """bf16[N, units * 128]: what `few_rows_mosaic_gpu` multiplies, a norm's factor left out.

    Where units are decoded there is no shared memory left to make it in.

    Args:
      x: [N, K], at most 8 rows.
      units: of 128 columns; after K come zeros.
    """
    rows = Rows.of(x, Warps(interpret), _MAKERS, units)
    operands = rows.operands(x)
    made = rows.scratch()["rows"]

    def body(*refs: Any, **scratch: Any) -> None:
        bound = dict(zip((*operands, "out"), refs, strict=True)) | scratch
        n, mine = jax.lax.axis_index("n"), jax.lax.axis_index("warpgroup")
        rows.prepare(bound, mine, rows.ask(bound, mine, n), [n])
        # The copy engine may read what a warpgroup has written once the warpgroup says so.
        plgpu.commit_smem()
        for turn in range(made.shape[1]):
            plgpu.copy_smem_to_gmem(bound["rows"].at[n, turn, mine], bound["out"].at[n, turn, mine])
        plgpu.wait_smem_to_gmem(0)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(made.shape, jnp.uint32),
        grid=(rows.count,),
        grid_names=("n",),
        num_threads=_MAKERS,
        thread_name="warpgroup",
        scratch_types=rows.scratch(),
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(interpret),
    )
    both = jax.lax.bitcast_convert_type(kernel(*operands.values()), jnp.bfloat16)
    return both.reshape(rows.count, -1)[:, : rows.columns]


@functools.partial(jax.jit, static_argnames=("config", "interpret"))
def add_up(
    products: jax.Array,
    x: Input,
    added: jax.Array | None,
    config: FewRowsConfig,
    interpret: bool,
) -> jax.Array:
    """float32[N, rows of weights]: what `few_rows_mosaic_gpu` makes of the same matrix.

    Args:
      products: float32[units across, N, rows of weights], a multiple of 128 rows.
      x: that they were multiplied by.
      added: float32[N, rows of weights], to be added.
      config: of the product.
    """
    warps, warpgroups = Warps(interpret), config.warpgroups
    units, count, height = products.shape
    at_once = WARPS * warpgroups
    turns = -(-units // at_once)
    operands: dict[str, Any] = {"products": products}
    rows = Rows.of(x, warps, warpgroups, units) if isinstance(x, Normed) else None
    if rows is not None:
        operands |= rows.operands(x)
    if added is not None:
        operands["added"] = added
    names = tuple(operands)

    def body(*refs: Any, sums: Any, **scratch: Any) -> None:
        bound = dict(zip((*names, "out"), refs, strict=True)) | scratch
        block, n = jax.lax.axis_index("block"), jax.lax.axis_index("n")
        mine = jax.lax.axis_index("warpgroup")
        columns = pl.ds(block * LANES, LANES)
        zero = plgpu.layout_cast(jnp.zeros(LANES, jnp.float32), LANE_LAYOUT)
        # Of what was stored as if by a warp each, all lanes have a row of weights.
        place = (block * LANES).astype(jnp.uint32) + warps.index()

        def product(unit: jax.Array) -> jax.Array:
            here = jnp.minimum(unit, units - 1) * count + n
            index = here.astype(jnp.uint32) * jnp.uint32(height) + place
            (word,) = warps.load(bound["products"], index, [0])
            found = jax.lax.bitcast_convert_type(word, jnp.float32)
            return jnp.where(unit < units, found, zero) if units % at_once else found

        asked = [] if rows is None else rows.ask(bound, mine, n)
        found = [
            [product(turn * at_once + mine * WARPS + warp) for turn in range(turns)]
            for warp in range(WARPS)
        ]
        here = n.astype(jnp.uint32) * jnp.uint32(height) + place
        rest = [] if added is None else warps.load(bound["added"], here, [0])
        if rows is not None:
            rows.prepare(bound, mine, asked, [n])
        for warp, each in enumerate(found):
            total = zero
            for more in each:
                total += more
            words = [jax.lax.bitcast_convert_type(total, jnp.uint32)]
            warps.keep(sums, mine * WARPS + warp, words)
        warps.collect(bound, mine, warpgroups)

        @pl.when(mine == 0)
        def _() -> None:
            total = zero
            for warpgroup in range(warpgroups):
                for warp in range(WARPS):
                    word = warps.gather(sums.at[warpgroup * WARPS + warp], warps.index())
                    total += jax.lax.bitcast_convert_type(word, jnp.float32)
            if rows is not None:
                factor = rows.factor(bound, jnp.uint32(0) * warps.index() + n.astype(jnp.uint32))
                total *= factor
            for word in rest:
                total += jax.lax.bitcast_convert_type(word, jnp.float32)
            if warps.interpret:
                bound["out"][n, columns] = total
                return
            words = [jax.lax.bitcast_convert_type(total, jnp.uint32)]
            warps.store(bound["out"], here, (0,), words, jnp.uint32(1) + jnp.uint32(0) * here)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((count, height), jnp.float32),
        grid=(height // LANES, count),
        grid_names=("block", "n"),
        num_threads=warpgroups,
        thread_name="warpgroup",
        scratch_types=({} if rows is None else rows.scratch())
        | warps.meeting(warpgroups)
        | {"sums": plgpu.SMEM((warpgroups * WARPS, LANES), jnp.uint32)},
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(interpret),
    )
    return kernel(*operands.values())
