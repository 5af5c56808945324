"""Matrices and residencies that the kernels must treat right, on a CPU as on a GPU."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import cacheable_tiles, ecsq, encode, is_lossy
from codecjax.codecs.ecsq_symbols import FINE, PAIR, SINGLE, SymbolLayout
from codecjax.codecs.window_units import padded_to
from codecjax.tiles import DECODE, Residency, TiledMatrix, fill_entry, units_per_tile
from kernels_pallas import reference_xla
from kernels_pallas.arg_specs import gaussian_weight
from tests.codecs.test_ecsq import planned

FIRST_TILE = 3
PAGES = 6


@dataclasses.dataclass(frozen=True)
class Case:
    """A matrix and how it is stored.

    Attributes:
      name: for test ids.
      shape: (OUT, K).
      codec: codec name.
      width: of window.
      escapes: "few" as they come, "verbatim" for tiles that must be stored verbatim too.
      tile: (rows, columns).
      options: of int8_rans, beside the smallest tables.
      symbols: of ecsq.
    """

    name: str
    shape: tuple[int, int]
    codec: str = "window"
    width: int = 11
    escapes: str = "few"
    # Smaller than usual: the interpreter is slow.
    tile: tuple[int, int] = (128, 256)
    options: tuple[tuple[str, Any], ...] = ()
    symbols: SymbolLayout = SINGLE

    @property
    def is_lossy(self) -> bool:
        """Whether decoding gives other weights than were encoded."""
        return is_lossy(self.codec)

    def weight(self) -> jax.Array:
        """bf16[OUT, K]: what decoding must give; of a lossy codec what the reference gives."""
        if self.is_lossy:
            return reference_xla.decode(self.tiled(), None, jnp.int32(0))[0]
        return self._encoded()

    def _encoded(self) -> jax.Array:
        w = gaussian_weight(*self.shape, seed=7)
        # One lane holds row 1's columns 0, 1, 8, 9, ...: several escapes for one lane.
        w = w.at[1, 8:10].set(2.0**-60).at[1, 16].set(2.0**40).at[2, 5].set(-0.0)
        if self.escapes == "verbatim":
            w = w.at[:3, :100].set(2.0**-100)
        if self.is_lossy:
            # One weight too large for its row; and rows apart in scale, if there can be tables.
            w = gaussian_weight(*self.shape, seed=7).at[5, 9].set(9.0)
            w = w.at[::3].multiply(64) if self.symbols is SINGLE else w
        return w

    def tiled(self) -> TiledMatrix:
        """The matrix, encoded."""
        t = _tiled(self)
        assert t.is_dense == (self.codec == "bf16"), "its codec could not make it smaller"
        return t


@functools.cache
def _tiled(case: Case) -> TiledMatrix:
    w = case._encoded()
    if case.codec == "ecsq":
        plan = planned(padded_to(w, case.tile), _RATES[case.symbols], case.symbols)
        return ecsq.encode(w, case.tile, _RATES[case.symbols], 0.0, plan=plan)
    # The largest tables would make these small matrices larger than bf16.
    smallest = {"probability_bits": 10}
    options = {
        "window": {"width": case.width},
        "rans": smallest,
        "int8_rans": smallest | dict(case.options),
    }
    return encode(w, codec=case.codec, tile=case.tile, **options.get(case.codec, {}))


# Tables included, which small matrices have few weights for.
_RATES = {SINGLE: 6.0, PAIR: 11.0, FINE: 15.0}

CASES = (
    Case("width 11", (128, 512)),
    Case("width 8", (128, 512), width=8),
    Case("width 16", (128, 512), width=16),
    Case("verbatim tile", (256, 512), escapes="verbatim"),
    Case("no multiple of a tile", (250, 500)),
    Case("tile of one unit", (128, 256), tile=(64, 128)),
    Case("dense", (128, 512), codec="bf16"),
    Case("rans", (128, 512), codec="rans"),
    Case("rans, verbatim tile", (250, 500), codec="rans", escapes="verbatim"),
    Case("int8_rans", (64, 256), "int8_rans", tile=(64, 128)),
    Case(
        *("int8_rans, predicted, float32 scales", (60, 250), "int8_rans"),
        tile=(64, 128),
        options=(("prediction", "left"), ("scale_bits", 32)),
    ),
    Case("ecsq, an index a symbol", (128, 512), "ecsq"),
    Case("ecsq, two indices a symbol", (60, 250), "ecsq", tile=(64, 128), symbols=PAIR),
    Case("ecsq, two symbols an index", (64, 256), "ecsq", tile=(64, 128), symbols=FINE),
)

# The interpreter is slow, and what becomes of decoded units depends neither on the width nor on
# how symbols are read: one of each kind is enough for pages. Products have what other kernels
# decoded: one of those is enough whose weights take a second pass.
_READ_OTHERWISE = ("int8_rans", "ecsq, two indices a symbol", "ecsq, two symbols an index")
PAGED = [
    case
    for case in CASES
    if case.codec != "bf16" and case.width == 11 and case.name not in _READ_OTHERWISE
]
MULTIPLIED = [case for case in CASES if not case.is_lossy or "predicted" in case.name]

# Matrices that share x: different heights, capacities and sources, for one kernel.
TOGETHER = (
    Case("width 11", (128, 512)),
    Case("verbatim tile", (256, 512), escapes="verbatim"),
    Case("rows that fill no tile", (250, 512)),
)


def bits(w: jax.Array) -> np.ndarray:
    """The bit patterns of bf16 weights: NaN equals NaN, 0 differs from -0."""
    return np.asarray(jax.lax.bitcast_convert_type(w, jnp.uint16))


def residency(t: TiledMatrix, entries: list[int], tiles: int | None = None) -> Residency:
    """A residency whose tiles from FIRST_TILE on belong to `t`; pages and record are poisoned.

    `tiles` is their number where they belong to several matrices like `t`.
    """
    table = np.full(FIRST_TILE + (tiles or t.tiles) + 1, DECODE, np.int32)
    table[FIRST_TILE : FIRST_TILE + len(entries)] = entries
    return Residency(
        pages=jnp.full((PAGES, *t.tile), 7.0, jnp.bfloat16),
        page_table=jnp.asarray(table),
        decoded=jnp.full((table.size, units_per_tile(t.tile)), 9, jnp.int32),
    )


def tile_of(w: Any, t: TiledMatrix, tile: int) -> Any:
    """Tile number `tile` of a weight, cut off at the weight's edges."""
    rows, columns = t.tile
    row, column = divmod(tile, t.grid[1])
    return w[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]


def assert_page_holds(page: jax.Array, w: jax.Array, t: TiledMatrix, tile: int) -> None:
    """Asserts that a page holds a tile's bits; what lies beyond the weight's edges is free."""
    expected = tile_of(w, t, tile)
    rows, columns = expected.shape
    chex.assert_trees_all_equal(bits(page[:rows, :columns]), bits(expected))


def assert_counted(
    decoded: jax.Array, matrices: tuple[TiledMatrix, ...], hit: int | None = None
) -> None:
    """Asserts that each compressed tile from FIRST_TILE on was decoded, but for number `hit`."""
    decodes = np.concatenate([cacheable_tiles(t) for t in matrices]).astype(np.int32)
    if hit is not None:
        decodes[hit] = 0
    mine = decoded[FIRST_TILE : FIRST_TILE + decodes.size]
    np.testing.assert_array_equal(mine, np.repeat(decodes[:, None], mine.shape[1], 1))
    assert (decoded[:FIRST_TILE] == 9).all()
    assert (decoded[FIRST_TILE + decodes.size :] == 9).all()


FILLS = [DECODE, fill_entry(4)]
HITS = [DECODE, 4]
