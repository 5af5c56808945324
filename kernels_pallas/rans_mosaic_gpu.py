"""Decode of codec `rans` as a Mosaic GPU kernel: each warpgroup decodes one coded group.

What a lane has decoded of a unit it stores by itself, eight weights of a row at a time.
Warpgroups of a CTA share the matrix's table in shared memory, and nothing else.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import rans, window_layout
from codecjax.codecs.rans_coder import LANES, WARPS
from codecjax.codecs.window_pool import place_of, verbatim_tiles
from codecjax.tiles import DECODE, UNIT_COLUMNS, UNIT_ROWS, Residency, TiledMatrix, units_per_tile
from kernels_pallas.emit import LANE_LAYOUT
from kernels_pallas.mosaic import LANE_SEMANTICS, SMS, interpreter
from kernels_pallas.rans_lanes import STEPS, RansLanes, table_shape
from kernels_pallas.row_major import load_unit, store_unit
from kernels_pallas.unit_walk import row_bias
from kernels_pallas.warps import Warps

_BYTE_WORDS = 16
# Groups on each multiprocessor, from which a second warpgroup a CTA does not pay.
_ENOUGH_GROUPS = 8


def _exponents(symbol: jax.Array) -> jax.Array:
    """The two digits in a symbol's lowest byte where bf16 has exponents."""
    low = (symbol & jnp.uint32(0xF)) << jnp.uint32(7)
    return low | (symbol & jnp.uint32(0xF0)) << jnp.uint32(19)


@dataclasses.dataclass(frozen=True)
class RansConfig:
    """How the work is cut.

    Attributes:
      warpgroups: of a CTA, at most 8; they share a table.
    """

    warpgroups: int


def choose_config(groups: int) -> RansConfig:
    """One warpgroup a CTA where that alone makes enough work for all multiprocessors."""
    return RansConfig(1 if groups >= _ENOUGH_GROUPS * SMS else 2)


def decode(
    t: TiledMatrix,
    residency: Residency | None,
    first_tile: jax.Array,
    *,
    missing_only: bool = False,
    config: RansConfig | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, Residency | None]:
    """bf16[OUT, K], reading resident tiles from their pages and filling pages as told.

    Args:
      t: of codec rans, not dense.
      residency, first_tile: as in `kernels_pallas.decode`.
      missing_only: whether to leave resident tiles out, as they happen to be.
      config: how the work is cut; None for what is known to be fast.
      interpret: run in the Pallas interpreter.
    """
    mode = _Mode(dense=True, resident=not missing_only)
    w, residency = _run(t, residency, first_tile, mode, config, interpret)
    assert w is not None
    return w, residency


def fill(
    t: TiledMatrix,
    residency: Residency,
    first_tile: jax.Array,
    *,
    config: RansConfig | None = None,
    interpret: bool = False,
) -> Residency:
    """The residency with pages filled as told; tiles that fill none are not decoded."""
    if residency.pages is None:
        return residency
    mode = _Mode(dense=False, resident=False)
    return _run(t, residency, first_tile, mode, config, interpret)[1] or residency


@dataclasses.dataclass(frozen=True)
class _Mode:
    """What becomes of tiles.

    Attributes:
      dense: whether there is a dense matrix; if not, only tiles that fill pages are decoded.
      resident: whether resident tiles are copied to it.
    """

    dense: bool
    resident: bool


@functools.partial(jax.jit, static_argnames=("mode", "config", "interpret"))
def _run(
    t: TiledMatrix,
    residency: Residency | None,
    first_tile: jax.Array,
    mode: _Mode,
    config: RansConfig | None,
    interpret: bool,
) -> tuple[jax.Array | None, Residency | None]:
    warps, place = Warps(interpret), place_of(t)
    down, across = t.tile[0] // UNIT_ROWS, t.tile[1] // UNIT_COLUMNS
    units = rans.units_of_group(t.tile)
    groups = units_per_tile(t.tile) // units
    config = config or choose_config(t.tiles * groups)
    warpgroups = config.warpgroups
    bits = t.arrays["table"].shape[-1].bit_length() - 1
    record = t.arrays["escapes"].shape[-1]
    counted = residency is not None
    paged = residency is not None and residency.pages is not None
    verbatim = verbatim_tiles(t) > 0
    padded = (t.unit_grid[0] * UNIT_ROWS, t.unit_grid[1] * UNIT_COLUMNS)
    operands: dict[str, Any] = {
        name: t.arrays[name]
        for name in ("words", "escapes", "base", "states", "starts", "stream", "table")
    }
    if verbatim:
        operands |= {name: t.arrays[name] for name in ("slot", "verbatim")}
    if residency is not None:
        operands |= {"first": first_tile.reshape(1), "decoded": jax.new_ref(residency.decoded)}
        if paged:
            operands |= {"entries": residency.page_table, "pages": jax.new_ref(residency.pages)}
    names = tuple(operands)
    in_all = t.tiles * groups

    def body(*refs: Any, table: Any, rings: Any, arrived: Any) -> None:
        bound = dict(zip((*names, *(("dense",) if mode.dense else ())), refs, strict=True))
        mine = jax.lax.axis_index("warpgroup")
        number = jax.lax.axis_index("cta") * warpgroups + mine
        lanes = RansLanes(warps, bits, table, rings.at[mine], bound["stream"])
        lanes.fill_table(bound["table"].at[place.first_table], _exponents, mine, warpgroups)
        plgpu.commit_smem()
        plgpu.barrier_arrive(arrived)
        plgpu.barrier_wait(arrived)

        @pl.when(number < in_all)
        def _() -> None:
            group(bound, lanes, number // groups, jax.lax.rem(number, groups))

    def group(bound: dict[str, Any], lanes: RansLanes, tile: jax.Array, part: jax.Array) -> None:
        """Does what is to be done with one group of a tile."""
        entry, slot = jnp.int32(DECODE), tile + place.first_slot
        if paged:
            entry = bound["entries"][bound["first"][0] + tile]
        if verbatim:
            slot = bound["slot"][place.first_tile + tile]
            # A damaged slot must not lead beyond the arrays.
            slot = jnp.clip(slot, -t.arrays["verbatim"].shape[0], t.arrays["words"].shape[0] - 1)
        decoding = (entry < 0) & (slot >= 0)
        wanted = decoding if mode.dense else decoding & (entry < DECODE)

        @pl.when(wanted)
        def _decode() -> None:
            decode_group(bound, lanes, tile, part, slot, entry)

        if mode.dense and verbatim:

            @pl.when((entry < 0) & (slot < 0))
            def _copy_verbatim() -> None:
                copy_group("verbatim", -slot - 1, bound, tile, part, entry)

        if mode.resident and paged:

            @pl.when(entry >= 0)
            def _copy_page() -> None:
                copy_group("pages", entry, bound, tile, part, entry)

        if counted:
            first = bound["first"][0] + tile
            for unit in range(units):
                bound["decoded"][first, part * units + unit] = jnp.where(wanted, 1, 0)

    def in_tile(unit: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First row and column of a unit in its tile."""
        return (unit // across) * UNIT_ROWS, jax.lax.rem(unit, across) * UNIT_COLUMNS

    def put(
        bound: dict[str, Any], tile: jax.Array, unit: jax.Array, entry: jax.Array, words: Any
    ) -> None:
        """Stores a unit's registers, in the order of `row_major`, wherever it should be."""
        row, column = in_tile(unit)
        if mode.dense:
            top = tile // t.grid[1] * t.tile[0] + row
            left = jax.lax.rem(tile, t.grid[1]) * t.tile[1] + column
            store_unit(warps, bound["dense"], None, top, left, words)
        if paged:

            @pl.when(entry < DECODE)
            def _() -> None:
                store_unit(warps, bound["pages"], -entry - 2, row, column, words)

    def copy_group(
        name: str,
        number: jax.Array,
        bound: dict[str, Any],
        tile: jax.Array,
        part: jax.Array,
        entry: jax.Array,
    ) -> None:
        def copy_unit(step: jax.Array, carry: None) -> None:
            del carry
            unit = part * units + step
            row, column = in_tile(unit)
            put(bound, tile, unit, entry, load_unit(warps, bound[name], number, row, column))

        jax.lax.fori_loop(0, units, copy_unit, None)

    def decode_group(
        bound: dict[str, Any],
        lanes: RansLanes,
        tile: jax.Array,
        part: jax.Array,
        slot: jax.Array,
        entry: jax.Array,
    ) -> None:
        lane, warp = warps.index(), warps.warp()
        coded = (slot * groups + part).astype(jnp.uint32)
        (state,) = warps.load(bound["states"], coded * LANES + lane, [0])
        (position,) = warps.load(bound["starts"], coded * WARPS + warp, [0])

        def bias_of(down_in_tile: jax.Array) -> tuple[jax.Array, ...]:
            row = (place.first_row + tile // t.grid[1]) * t.tile[0] + down_in_tile * UNIT_ROWS
            return row_bias(lambda index: warps.gather(bound["base"], index), row, lane)

        def decode_unit(step: jax.Array, carry: Any) -> Any:
            unit = part * units + step
            at = (slot * (down * across) + unit).astype(jnp.uint32)
            index = at * jnp.uint32(_BYTE_WORDS * LANES) + lane
            offsets = [number * LANES for number in range(_BYTE_WORDS)]
            bytes_ = warps.load(bound["words"], index, offsets)
            records = warps.load_record(bound["escapes"], at, record)
            bias = bias_of(unit // across)
            registers: list[jax.Array] = []
            for _ in range(0, window_layout.REGISTERS, STEPS):
                carry, exponents = lanes.steps(carry)
                for exponent in exponents:
                    half = len(registers) % 2
                    spread = warps.spread(bytes_[len(registers) // 2], bool(half))
                    registers.append(warps.merge(spread, exponent + bias[half]))
            put(bound, tile, unit, entry, warps.patch_warp(registers, records, warp, bias, record))
            return tuple(plgpu.layout_cast(each, LANE_LAYOUT) for each in carry)

        carry = tuple(plgpu.layout_cast(each, LANE_LAYOUT) for each in lanes.open(state, position))
        jax.lax.fori_loop(0, units, decode_unit, carry)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(padded, jnp.bfloat16) if mode.dense else (),
        grid=(-(-in_all // warpgroups),),
        grid_names=("cta",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        scratch_types={
            "table": plgpu.SMEM(table_shape(bits, warpgroups), jnp.uint32),
            "rings": plgpu.SMEM((warpgroups, RansLanes.rings_size()), jnp.uint32),
            "arrived": plgpu.Barrier(num_arrivals=warpgroups),
        },
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(interpret),
    )
    found = kernel(*operands.values())
    w = found[: t.shape[0], : t.shape[1]] if mode.dense else None
    if residency is None:
        return w, None
    pages = jax.freeze(operands["pages"]) if paged else residency.pages
    return w, Residency(pages, residency.page_table, jax.freeze(operands["decoded"]))
