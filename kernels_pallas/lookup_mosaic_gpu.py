"""Rows of a `window` matrix as a Mosaic GPU kernel: one launch, where XLA takes five.

A warp decodes the stripe of a unit that a row is in, as in a product with few rows of x, and stores
what the row has of it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs.window_layout import REGISTERS
from codecjax.codecs.window_rows import inside
from codecjax.errors import UserError
from codecjax.tiles import UNIT_COLUMNS, TiledMatrix
from kernels_pallas.emit import LANE_LAYOUT
from kernels_pallas.lanes import Lanes
from kernels_pallas.mosaic import LANE_SEMANTICS, interpreter
from kernels_pallas.stripe_stage import STRIPE_ROWS
from kernels_pallas.stripe_walk import StripeWalk
from kernels_pallas.unit_stream import MAX_TILES_ACROSS, UnitStream
from kernels_pallas.warps import WARPS, Warps


def read_rows(
    t: TiledMatrix, rows: jax.Array, dtype: str = "bfloat16", *, interpret: bool = False
) -> jax.Array:
    """Reads rows of a matrix of this codec that is not dense.

    Args:
      t: the matrix, [OUT, K].
      rows: int32[N], see `inside`.
      dtype: of the result, "bfloat16" or "float32".
      interpret: run in the Pallas interpreter.

    Returns:
      [N, K].

    Raises:
      UserError: the matrix has too many tiles in a row.
    """
    if t.grid[1] > MAX_TILES_ACROSS:
        raise UserError(
            f"a matrix of {t.shape[1]} columns in tiles of {t.tile[1]} has more than "
            f"{MAX_TILES_ACROSS} tiles in a row: encode it with wider tiles"
        )
    count, warps = len(rows), Warps(interpret)
    stream, sources = UnitStream.of([t], None, 1, Lanes(interpret))
    operands = {"rows": rows, **stream.operands(sources, None, jnp.int32(0))}
    units, ctas = stream.units_across, -(-stream.units_across // WARPS)
    # The interpreter stores what all warps of a CTA have.
    columns = (ctas * WARPS if interpret else units) * UNIT_COLUMNS

    def body(*refs: Any, **scratch: Any) -> None:
        bound = dict(zip((*operands, "out"), refs, strict=True)) | scratch
        number, part = jax.lax.axis_index("row"), jax.lax.axis_index("part")
        row = inside(bound["rows"][number], t.shape[0])
        walk = StripeWalk.start(stream, warps, bound, row // STRIPE_ROWS)
        first = (part * WARPS).astype(jnp.uint32)
        unit = plgpu.layout_cast(first + warps.warp(), LANE_LAYOUT)
        place = walk.place(jnp.minimum(unit, jnp.uint32(units - 1)))
        fetched = walk.fetch(place)
        registers = walk.prepare().registers(place, fetched)
        # Register 2q has a lane's upper row, register 2q + 1 its lower.
        upper = jnp.uint32(STRIPE_ROWS // 2)
        in_stripe = warps.in_each(jax.lax.rem(row, STRIPE_ROWS))
        words = [
            jnp.where(in_stripe < upper, registers[pair], registers[pair + 1])
            for pair in range(0, REGISTERS, 2)
        ]
        if interpret:
            four = jnp.stack(words).reshape(-1, WARPS, STRIPE_ROWS // 2, 4).transpose(1, 2, 0, 3)
            mine = four.reshape(WARPS, STRIPE_ROWS // 2, -1)[:, in_stripe[0] % upper].reshape(-1)
            here = pl.ds(part * (WARPS * UNIT_COLUMNS), WARPS * UNIT_COLUMNS)
            values = jax.lax.bitcast_convert_type(mine, jnp.bfloat16).reshape(-1)
            bound["out"][number, here] = values.astype(dtype)
            return
        at = (number * (columns // 2)).astype(jnp.uint32) + warps.lane() % 4
        at += unit * jnp.uint32(UNIT_COLUMNS // 2)
        places = list(range(0, UNIT_COLUMNS // 2, 4))
        if dtype == "float32":
            at, places = 2 * at, [2 * place + half for place in places for half in range(2)]
            words = [half for word in words for half in (word << 16, word >> 16 << 16)]
        is_mine = (warps.lane() // 4 == in_stripe % upper) & (unit < jnp.uint32(units))
        where = jnp.where(is_mine, jnp.uint32(1), jnp.uint32(0))
        warps.store(bound["out"], at, places, words, where)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((count, columns), dtype),
        grid=(count, ctas),
        grid_names=("row", "part"),
        scratch_types=StripeWalk.scratch(stream),
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(interpret),
    )
    return kernel(*operands.values())[:, : t.shape[1]]
