"""How the indices of `ecsq` are symbols of the coder, by the size of the matrix's tables.

    2**10 slots   a symbol is one index, +128: -127..127
    2**12 slots   a symbol is the two indices of a register, +8 each, low | high << 4: -7..7
    2**11 slots   an index is two symbols, index // 8 + 128 and index % 8: -1023..1023. All of
                  the second kind share table 0, which gives each of the eight the same frequency.

Steps of a register come in order of halves, the low one first.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import rans_coder, window_layout
from codecjax.tiles import UNIT_COLUMNS, UNIT_ROWS

_FINE = 8


@dataclasses.dataclass(frozen=True)
class SymbolLayout:
    """One of the three.

    Attributes:
      bits: of the tables.
      largest: largest index.
      steps: symbols of a register.
      bias: what is added to an index, or to its eighth, to make a symbol.
    """

    bits: int
    largest: int
    steps: int
    bias: int

    @property
    def first_table(self) -> int:
        """Number of a matrix's first table of rows."""
        return 1 if self is FINE else 0


SINGLE = SymbolLayout(bits=10, largest=127, steps=2, bias=128)
PAIR = SymbolLayout(bits=12, largest=7, steps=1, bias=8)
FINE = SymbolLayout(bits=11, largest=1023, steps=4, bias=128)
LAYOUTS = {layout.bits: layout for layout in (SINGLE, PAIR, FINE)}


def layout_of(table: jax.Array) -> SymbolLayout:
    """The layout of a matrix whose tables are uint32[TABLES, 2**bits]."""
    return LAYOUTS[table.shape[-1].bit_length() - 1]


def to_symbols(index: jax.Array, tile: tuple[int, int], layout: SymbolLayout) -> jax.Array:
    """uint8[tile rows, tiles across, R, Q, 32 * steps, 128] of indices int16[rows, K].

    Args:
      index: of whole tiles.
      tile: (rows, columns).
      layout: of the symbols.
    """
    # All indices are far from the ends of 16 bits.
    registers = window_layout.fragment_order((index + (1 << 14)).astype(jnp.uint16), tile)
    halves = [
        (half.astype(jnp.int32) & 0xFFFF) - (1 << 14) for half in (registers, registers >> 16)
    ]
    if layout is PAIR:
        low, high = (half + layout.bias for half in halves)
        return (low | high << 4).astype(jnp.uint8)
    if layout is FINE:
        parts = [part for half in halves for part in ((half >> 3) + layout.bias, half & 7)]
    else:
        parts = [half + layout.bias for half in halves]
    symbols = jnp.stack(parts, axis=-2).astype(jnp.uint8)
    return symbols.reshape(*registers.shape[:4], -1, rans_coder.LANES)


def to_indices(symbols: jax.Array, tile: tuple[int, int], layout: SymbolLayout) -> jax.Array:
    """int32[rows, columns] of the symbols uint8[..., 128] of one tile, in order of steps."""
    units = (tile[0] // UNIT_ROWS, tile[1] // UNIT_COLUMNS, window_layout.REGISTERS)
    of_register = symbols.astype(jnp.int32).reshape(*units, layout.steps, rans_coder.LANES)
    if layout is PAIR:
        both = of_register[..., 0, :]
        halves = [both & 0xF, both >> 4]
    elif layout is FINE:
        eighths, rest = of_register[..., 0::2, :], of_register[..., 1::2, :]
        # Of a damaged stream `rest` may be anything.
        fine = (eighths - layout.bias) * _FINE + rest
        return window_layout.row_order(jnp.moveaxis(fine, -2, -1))
    else:
        halves = [of_register[..., half, :] for half in range(2)]
    return window_layout.row_order(jnp.stack(halves, axis=-1)) - layout.bias


def tables_of_steps(
    table: jax.Array, tile: tuple[int, int], layout: SymbolLayout, steps: int
) -> jax.Array:
    """[..., G, STEPS, 128]: the table of each symbol of tiles whose rows have `table` [..., rows].

    Args:
      table: the number of each row's table.
      tile: (rows, columns).
      layout: of the symbols.
      steps: STEPS of a group.
    """
    lane, register = np.arange(rans_coder.LANES), np.arange(window_layout.REGISTERS)[:, None]
    of_unit = np.repeat(window_layout.row_of(lane, register), layout.steps, axis=0)
    down = np.repeat(np.arange(tile[0] // UNIT_ROWS), tile[1] // UNIT_COLUMNS)
    row = (UNIT_ROWS * down[:, None, None] + of_unit).reshape(-1, steps, rans_coder.LANES)
    tables = table[..., row]
    if layout is FINE:
        is_rest = np.arange(steps)[:, None] % 2 == 1
        tables = jnp.where(is_rest, jnp.zeros_like(tables), tables)
    return tables


def signed_counts(counts: np.ndarray, layout: SymbolLayout) -> np.ndarray:
    """float64[256]: how often each symbol occurs, of those whose table depends on the row.

    Signs are taken as equally likely, and the two indices of a pair as independent.

    Args:
      counts: float64[Q + 1] of indices' magnitudes 0..Q.
      layout: of the symbols.
    """
    largest = len(counts) - 1
    indices = np.concatenate([counts[:0:-1] / 2, counts[:1], counts[1:] / 2])
    index = np.arange(-largest, largest + 1)
    if layout is PAIR:
        biased = index + layout.bias
        symbols = np.zeros(rans_coder.ALPHABET)
        symbols[biased[:, None] | biased << 4] = indices[:, None] * indices / (2 * indices.sum())
        return symbols
    number = (index >> 3 if layout is FINE else index) + layout.bias
    return np.bincount(number, indices, minlength=rans_coder.ALPHABET)
