"""The kernel that decodes entropy-coded tiles: each warpgroup decodes one coded group.

Lanes store by themselves what they have decoded, eight weights of a row at a time, or multiply it
by a few rows of x, see `unit_products`: that saves writing and reading all weights. Warpgroups of a
CTA share the matrix's tables in shared memory, and nothing else. How units come of symbols is the
codec's part, see `coded_units`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from codecjax.codecs import rans
from codecjax.codecs.rans_coder import LANES, WARPS
from codecjax.codecs.window_pool import place_to_read, verbatim_tiles
from codecjax.tiles import DECODE, UNIT_COLUMNS, UNIT_ROWS, Residency, TiledMatrix, units_per_tile
from kernels_pallas.coded_stack import CodedGroup, CodedPlace, CodedStack
from kernels_pallas.coded_units import CodedUnit, UnitDecoder
from kernels_pallas.emit import LANE_LAYOUT
from kernels_pallas.mosaic import LANE_SEMANTICS, SMS, interpreter
from kernels_pallas.rans_lanes import RansLanes, table_shape
from kernels_pallas.row_major import load_unit, store_columns
from kernels_pallas.unit_products import UnitProducts
from kernels_pallas.warps import Warps

# Groups on each multiprocessor, from which a second warpgroup a CTA does not pay; and from which
# all multiprocessors have work for four.
_ENOUGH_GROUPS, _GROUPS_FOR_FOUR = 8, 4
# Shared memory of a multiprocessor, and what every CTA takes of it besides its own.
_SHARED_BYTES, _RESERVED_BYTES = 228 * 2**10, 2**10
# Warpgroups at work on a multiprocessor that make more of them a CTA unnecessary, by the words of
# a table's entry: where it has one, a step is longer.
_ENOUGH_WARPGROUPS = {1: 6, 2: 5}


@dataclasses.dataclass(frozen=True)
class EntropyConfig:
    """How the work is cut.

    Attributes:
      warpgroups: of a CTA, 1, 2 or 4; they share tables.
    """

    warpgroups: int


def choose_config(groups: int, table_bytes: int, entry_words: int) -> EntropyConfig:
    """As few warpgroups a CTA as make enough work for a multiprocessor, where its tables fit.

    Args:
      groups: of the matrix.
      table_bytes: of all tables in shared memory.
      entry_words: of an entry of them.
    """
    fewest = 1 if groups >= _ENOUGH_GROUPS * SMS else 2
    most = 4 if groups >= _GROUPS_FOR_FOUR * SMS else 2

    def at_work(warpgroups: int) -> int:
        """Warpgroups for which a multiprocessor has shared memory."""
        own = table_bytes + 4 * warpgroups * RansLanes.rings_size()
        return warpgroups * (_SHARED_BYTES // (own + _RESERVED_BYTES))

    choices = [each for each in (1, 2, 4) if fewest <= each <= most]
    enough = (each for each in choices if at_work(each) >= _ENOUGH_WARPGROUPS[entry_words])
    return EntropyConfig(next(enough, choices[-1]))


@dataclasses.dataclass(frozen=True)
class Mode:
    """What becomes of tiles. Those that fill pages are decoded always.

    Attributes:
      dense: whether decoded tiles go to a dense matrix.
      resident: whether resident tiles are copied to it.
      others: whether tiles that neither are resident nor fill pages are decoded.
      pages: whether pages are filled.
    """

    dense: bool
    resident: bool
    others: bool
    pages: bool


def run(
    matrices: Sequence[TiledMatrix],
    residency: Residency | None,
    first_tile: jax.Array,
    decoder: UnitDecoder,
    mode: Mode,
    config: EntropyConfig | None,
    interpret: bool,
    x: jax.Array | None = None,
) -> tuple[jax.Array | None, Residency | None]:
    """The dense matrix of whole tiles, bf16, or products, if any, and the residency afterwards.

    Args:
      matrices: that `share_arrays`, of an entropy-coded codec, not dense; in what is returned, one
        below the other.
      residency, first_tile: as in `kernels_pallas.decode`; the matrices' tiles follow one another.
      decoder: the codec's part, of the first matrix.
      mode: what becomes of tiles.
      config: how the work is cut; None for what is known to be fast.
      interpret: run in the Pallas interpreter.
      x: bf16[N, K], at most 8 rows, that units are multiplied by, see `unit_products`; there is no
        dense matrix then, and the decoder puts whole units.
    """
    assert x is None or not mode.dense
    # Arrays that matrices share are handed over once.
    bare = tuple(dataclasses.replace(t, arrays={}, place=place_to_read(t)) for t in matrices)
    arrays = matrices[0].arrays
    return _run(arrays, bare, residency, first_tile, decoder, mode, config, interpret, x)


@functools.partial(jax.jit, static_argnames=("decoder", "mode", "config", "interpret"))
def _run(
    arrays: dict[str, jax.Array],
    matrices: tuple[TiledMatrix, ...],
    residency: Residency | None,
    first_tile: jax.Array,
    decoder: UnitDecoder,
    mode: Mode,
    config: EntropyConfig | None,
    interpret: bool,
    x: jax.Array | None,
) -> tuple[jax.Array | None, Residency | None]:
    warps, tile_shape, tiles_across = Warps(interpret), matrices[0].tile, matrices[0].grid[1]
    down, across = tile_shape[0] // UNIT_ROWS, tile_shape[1] // UNIT_COLUMNS
    units = rans.units_of_group(tile_shape)
    groups = units_per_tile(tile_shape) // units
    bits = arrays["table"].shape[-1].bit_length() - 1
    entry_words = 1 if decoder.expand is None else 2
    in_all = sum(t.tiles for t in matrices) * groups
    table_bytes = 4 * entry_words * decoder.tables << bits
    config = config or choose_config(in_all, table_bytes, entry_words)
    warpgroups = config.warpgroups
    stack = CodedStack.of(matrices, groups, warpgroups)
    products = None
    if x is not None:
        unit_grid = (stack.rows // UNIT_ROWS, tiles_across * across)
        products = UnitProducts.of(x, warps, unit_grid)
    counted = residency is not None
    paged = residency is not None and residency.pages is not None
    has_pages = paged and (mode.resident or mode.pages)
    verbatim = any(verbatim_tiles(t) > 0 for t in matrices)
    padded = (stack.rows, tiles_across * tile_shape[1])
    operands: dict[str, Any] = {
        name: arrays[name] for name in (*decoder.arrays, "states", "starts", "stream", "table")
    }
    if verbatim:
        operands |= {name: arrays[name] for name in ("slot", "verbatim")}
    if residency is not None:
        operands |= {"first": first_tile.reshape(1), "decoded": jax.new_ref(residency.decoded)}
        if paged:
            operands["entries"] = residency.page_table
        if has_pages:
            operands["pages"] = jax.new_ref(residency.pages)
    out_type: Any = jax.ShapeDtypeStruct(padded, jnp.bfloat16) if mode.dense else ()
    if products is not None and x is not None:
        operands |= products.rows.operands(x)
        out_type = jax.ShapeDtypeStruct(products.shape, jnp.float32)
    names = tuple(operands)
    out_name = ("dense",) if mode.dense else () if products is None else ("products",)

    def body(*refs: Any, table: Any, rings: Any, arrived: Any) -> None:
        bound = dict(zip((*names, *out_name), refs, strict=True))
        mine = jax.lax.axis_index("warpgroup")
        place = stack.place(jax.lax.axis_index("cta"))
        lanes = RansLanes(
            warps, bits, decoder.tables, decoder.expand, table, rings.at[mine], bound["stream"]
        )

        def fill_tables() -> None:
            lanes.fill_tables(bound["table"], place.table, mine, warpgroups)
            plgpu.commit_smem()
            plgpu.barrier_arrive(arrived)
            plgpu.barrier_wait(arrived)

        def find(warpgroup: jax.Array | int) -> CodedGroup:
            return found_group(bound, place, place.cta * warpgroups + warpgroup)

        if paged or verbatim or not mode.others:
            needed = [is_decoded(find(each)) for each in range(warpgroups)]
            pl.when(functools.reduce(jnp.logical_or, needed))(fill_tables)
        else:
            fill_tables()
        here = find(mine)

        @pl.when(place.cta * warpgroups + mine < place.groups)
        def _() -> None:
            group(bound, lanes, here)

    def found_group(bound: dict[str, Any], place: CodedPlace, number: jax.Array) -> CodedGroup:
        """A group of the CTA's matrix; beyond the last one, that."""
        number = jnp.minimum(number, place.groups - 1)
        tile = number // groups
        entry, slot = jnp.int32(DECODE), tile + place.slot
        if paged:
            entry = bound["entries"][bound["first"][0] + place.first_tile + tile]
        if verbatim:
            slot = bound["slot"][place.pool_tile + tile]
            # A damaged slot must not lead beyond the arrays.
            slot = jnp.clip(slot, -arrays["verbatim"].shape[0], arrays["states"].shape[0] - 1)
        return CodedGroup(place, tile, jax.lax.rem(number, groups), entry, slot)

    def is_decoded(here: CodedGroup) -> jax.Array:
        decoding = (here.entry < 0) & (here.slot >= 0)
        return decoding if mode.others else decoding & (here.entry < DECODE)

    def group(bound: dict[str, Any], lanes: RansLanes, here: CodedGroup) -> None:
        """Does what is to be done with one group of a tile."""
        entry, slot, decoding = here.entry, here.slot, is_decoded(here)

        @pl.when(decoding)
        def _decode() -> None:
            decode_group(bound, lanes, here)

        if mode.others and verbatim:

            @pl.when((entry < 0) & (slot < 0))
            def _copy_verbatim() -> None:
                copy_group("verbatim", -slot - 1, bound, here)

        if mode.resident and paged:

            @pl.when(entry >= 0)
            def _copy_page() -> None:
                # A resident tile fills no page.
                resident = dataclasses.replace(here, entry=jnp.int32(DECODE))
                copy_group("pages", entry, bound, resident)

        if counted:
            first = bound["first"][0] + here.place.first_tile + here.tile
            for unit in range(units):
                bound["decoded"][first, here.part * units + unit] = jnp.where(decoding, 1, 0)

    def in_tile(unit: jax.Array) -> tuple[jax.Array, jax.Array]:
        """First row and column of a unit in its tile."""
        return (unit // across) * UNIT_ROWS, jax.lax.rem(unit, across) * UNIT_COLUMNS

    def put(
        bound: dict[str, Any],
        here: CodedGroup,
        unit: jax.Array,
        first: jax.Array | int,
        registers: list[jax.Array],
    ) -> None:
        """Stores registers of a unit, from its column `first` on, wherever they should be."""
        row, column = in_tile(unit)
        top = here.place.first_row + here.tile // tiles_across * tile_shape[0] + row
        left = jax.lax.rem(here.tile, tiles_across) * tile_shape[1] + column
        if mode.dense:
            store_columns(warps, bound["dense"], None, top, left + first, registers)
        if products is not None:
            products.put(bound, top, left // UNIT_COLUMNS, registers)
        if paged and mode.pages:

            @pl.when(here.entry < DECODE)
            def _() -> None:
                page = -here.entry - 2
                store_columns(warps, bound["pages"], page, row, column + first, registers)

    def copy_group(name: str, number: jax.Array, bound: dict[str, Any], here: CodedGroup) -> None:
        def copy_unit(step: jax.Array, carry: None) -> None:
            del carry
            unit = here.part * units + step
            registers = load_unit(warps, bound[name], number, *in_tile(unit))
            put(bound, here, unit, 0, registers)

        jax.lax.fori_loop(0, units, copy_unit, None)

    def decode_group(bound: dict[str, Any], lanes: RansLanes, here: CodedGroup) -> None:
        lane, warp = warps.index(), warps.warp()
        coded = (here.slot * groups + here.part).astype(jnp.uint32)
        (state,) = warps.load(bound["states"], coded * LANES + lane, [0])
        (position,) = warps.load(bound["starts"], coded * WARPS + warp, [0])

        def decode_unit(step: jax.Array, carry: Any) -> Any:
            number = here.part * units + step
            row = (here.place.pool_row + here.tile // tiles_across) * tile_shape[0]
            unit = CodedUnit(
                warps=warps,
                lanes=lanes,
                refs=bound,
                first_row=row + number // across * UNIT_ROWS,
                number=(here.slot * (down * across) + number).astype(jnp.uint32),
                put=functools.partial(put, bound, here, number),
            )
            carry = decoder.decode(unit, carry)
            return tuple(plgpu.layout_cast(each, LANE_LAYOUT) for each in carry)

        carry = tuple(plgpu.layout_cast(each, LANE_LAYOUT) for each in lanes.open(state, position))
        jax.lax.fori_loop(0, units, decode_unit, carry)

    kernel = plgpu.kernel(
        body,
        out_type=out_type,
        grid=(stack.ctas,),
        grid_names=("cta",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        scratch_types={
            "table": plgpu.SMEM(
                table_shape(bits, decoder.tables, entry_words, warpgroups), jnp.uint32
            ),
            "rings": plgpu.SMEM((warpgroups, RansLanes.rings_size()), jnp.uint32),
            "arrived": plgpu.Barrier(num_arrivals=warpgroups),
        },
        compiler_params=LANE_SEMANTICS,
        interpret=interpreter(interpret),
    )
    found = kernel(*operands.values())
    made = found if out_name else None
    if residency is None:
        return made, None
    pages = jax.freeze(operands["pages"]) if has_pages else residency.pages
    return made, Residency(pages, residency.page_table, jax.freeze(operands["decoded"]))
