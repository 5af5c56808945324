"""Which prediction the tiles of an `int8_rans` matrix should have: counts, and costs.

One table codes all residuals of a matrix. A table for each prediction in use would be smaller
only in large matrices of which many tiles are predicted: the embedded model's head, the one of its
matrices that has two predictions, would save 0.089 bits a weight and pay 0.125 for the table.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import parts, rans_coder
from codecjax.codecs.ecsq_symbols import SINGLE
from codecjax.codecs.int8_prediction import residuals

_ROUNDS = 8


def tiles_of(values: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """[tile rows, tiles across, rows, columns] of values [tile rows * rows, K] of whole tiles."""
    rows, columns = tile
    return values.reshape(-1, rows, values.shape[1] // columns, columns).swapaxes(1, 2)


def rows_of(tiles: jax.Array) -> jax.Array:
    """[tile rows * rows, K] of values [tile rows, tiles across, rows, columns] of tiles."""
    down, across, rows, columns = tiles.shape
    return tiles.swapaxes(1, 2).reshape(down * rows, across * columns)


@functools.partial(jax.jit, static_argnames=("tile", "predictions"))
def residual_counts(
    values: jax.Array, tile: tuple[int, int], predictions: tuple[str, ...]
) -> jax.Array:
    """How often each symbol occurs in each tile under each of several predictions.

    Args:
      values: int8[tile rows * rows, K], of whole tiles.
      tile: (rows, columns).
      predictions: names in PREDICTIONS.

    Returns:
      int32[predictions, T, 256].
    """
    rows = tile[0]
    tile_rows = values.shape[0] // rows
    at_once = parts.tile_rows_at_once(tile_rows, rows * values.shape[1])

    def part(first: jax.Array | int) -> tuple[jax.Array, ...]:
        mine = jax.lax.dynamic_slice_in_dim(values, first * rows, at_once * rows)
        tiles = tiles_of(mine, tile)
        number = jnp.arange(tiles.shape[0] * tiles.shape[1])[:, None]
        counts = []
        for prediction in predictions:
            symbols = residuals(tiles, prediction).astype(jnp.int32) + SINGLE.bias
            counted = jnp.zeros((number.shape[0], rans_coder.ALPHABET), jnp.int32)
            counted = counted.at[number, symbols.reshape(number.shape[0], -1)].add(1)
            counts.append(counted.reshape(at_once, -1, rans_coder.ALPHABET))
        return tuple(counts)

    by_row = parts.in_parts(part, tile_rows, at_once)
    return jnp.stack([each.reshape(-1, rans_coder.ALPHABET) for each in by_row])


def choose_predictions(counts: np.ndarray) -> np.ndarray:
    """Which prediction each tile should have so that one table codes all in the fewest bits.

    All tiles begin with the prediction that is best if all have the same. Then each takes what
    is cheapest under the table that all together have, until none changes: every round costs
    fewer bits than the one before.

    Args:
      counts: int[predictions, T, 256], as `residual_counts` gives them.

    Returns:
      int[T].
    """
    tile = np.arange(counts.shape[1])
    chosen = np.full(tile.size, np.argmin([entropy_bits(each.sum(axis=0)) for each in counts]))
    fewest = entropy_bits(counts[chosen, tile].sum(axis=0))
    for _ in range(_ROUNDS):
        total = counts[chosen, tile].sum(axis=0)
        # As if each symbol had occurred once more: those that do not occur yet may come.
        costs = counts @ -np.log2((total + 1) / (total + 1).sum())
        proposed = np.argmin(costs, axis=0)
        bits = entropy_bits(counts[proposed, tile].sum(axis=0))
        if bits >= fewest:
            break
        chosen, fewest = proposed, bits
    return chosen


def entropy_bits(counts: np.ndarray) -> float:
    """Bits of all symbols that occur int[S] times, if each costs what its frequency makes it."""
    occurring = counts[counts > 0]
    return float(-(occurring * np.log2(occurring / counts.sum())).sum())
