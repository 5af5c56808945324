"""The `int8_rans` codec: lossy, int8 with a scale per row, predicted in tiles, entropy-coded.

`int8_rows` says what the values and scales of weights are, and `int8_prediction` what the
residuals of values are. All from the values on is lossless. Units and registers are those of
`window_layout`, and groups of units those of `rans`. A symbol is one residual + 128, as an index
of `ecsq` in tables of its first kind is; those of a register come the low half's first, so a
unit has 64 steps.

Arrays, for T tiles of G groups:

    states      uint32[T, G, 128]    see `rans_coder`
    starts      uint32[T, G, 4]
    stream      uint16[LENGTH]
    table       uint32[1, 2**probability_bits]
    scale       bf16 or float32[tile rows of the grid, rows of a tile]   as `scale_bits` says
    prediction  uint8[T]             number in `int8_prediction.PREDICTIONS`

Several matrices may share their arrays, see `window_pool`. A matrix that this would expand is
stored as the single array `dense` bf16[OUT, K].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import parts, rans_coder, window_layout, window_pool
from codecjax.codecs.ecsq_quantiser import dequantise
from codecjax.codecs.ecsq_symbols import SINGLE, to_indices, to_symbols
from codecjax.codecs.finite import check_finite
from codecjax.codecs.int8_choice import choose_predictions, residual_counts, rows_of, tiles_of
from codecjax.codecs.int8_prediction import PREDICTIONS, residuals, restore
from codecjax.codecs.int8_rows import SCALE_BITS, quantise
from codecjax.codecs.rans import units_of_group
from codecjax.codecs.window_pool import place_of
from codecjax.codecs.window_units import padded_to
from codecjax.tiles import TiledMatrix

VERSION = 1
BEST = "best"
# No prediction pays on trained weights, nor on random ones: see configs/prediction_ablation.py.
OPTIONS = {"prediction": "none", "probability_bits": 12, "scale_bits": 16}
CHOICES = {
    "prediction": (*PREDICTIONS, BEST),
    "probability_bits": rans_coder.BITS,
    "scale_bits": SCALE_BITS,
}
LOSSY = True
pooled = window_pool.pooled


def needs_decode(t: TiledMatrix) -> jax.Array:
    """bool[T]: False for a dense matrix."""
    return jnp.full(t.tiles, not t.is_dense)


@functools.partial(jax.jit, static_argnames=("tile", "predictions"))
def _symbols(
    values: jax.Array, chosen: jax.Array, tile: tuple[int, int], predictions: tuple[str, ...]
) -> jax.Array:
    """uint8[T, R, Q, 64, 128]: what is coded of values int8[tile rows * rows, K].

    Args:
      values: of whole tiles.
      chosen: int32[tile rows, tiles across], each tile's place in `predictions`.
      tile: (rows, columns).
      predictions: names in PREDICTIONS.
    """
    rows = tile[0]
    tile_rows = values.shape[0] // rows
    at_once = parts.tile_rows_at_once(tile_rows, rows * values.shape[1])

    def part(first: jax.Array | int) -> tuple[jax.Array, ...]:
        mine = jax.lax.dynamic_slice_in_dim(values, first * rows, at_once * rows)
        place = jax.lax.dynamic_slice_in_dim(chosen, first, at_once)[..., None, None]
        tiles = tiles_of(mine, tile)
        residual = jnp.zeros_like(tiles)
        for number, prediction in enumerate(predictions):
            residual = jnp.where(place == number, residuals(tiles, prediction), residual)
        return (to_symbols(rows_of(residual).astype(jnp.int32), tile, SINGLE),)

    (by_row,) = parts.in_parts(part, tile_rows, at_once)
    return by_row.reshape(-1, *by_row.shape[2:])


def encode(
    w: jax.Array, tile: tuple[int, int], prediction: str, probability_bits: int, scale_bits: int
) -> TiledMatrix:
    """Encodes bf16[OUT, K].

    Args:
      w: finite weights.
      tile: (rows, columns).
      prediction: of all tiles, or "best": of each tile what makes it cheapest.
      probability_bits: 10, 11 or 12.
      scale_bits: 16 for scales in bf16, 32 for float32.

    Raises:
      UserError: a weight is not finite.
    """
    check_finite(w, "int8_rans")
    shape = (w.shape[0], w.shape[1])
    options = {
        "prediction": prediction,
        "probability_bits": probability_bits,
        "scale_bits": scale_bits,
    }
    values, scale = quantise(padded_to(w, tile), scale_bits)
    predictions = PREDICTIONS if prediction == BEST else (prediction,)
    counts = np.asarray(residual_counts(values, tile, predictions))
    chosen = choose_predictions(counts)
    coded = counts[chosen, np.arange(chosen.size)].sum(axis=0)
    frequencies = rans_coder.frequencies(coded, probability_bits)
    of_tile_rows = jnp.asarray(chosen, jnp.int32).reshape(values.shape[0] // tile[0], -1)
    symbols = _symbols(values, of_tile_rows, tile, predictions)
    groups = symbols.reshape(-1, _steps(tile), rans_coder.LANES)
    streams = rans_coder.encode(groups, frequencies[None], probability_bits)
    numbers = np.array([PREDICTIONS.index(each) for each in predictions], np.uint8)
    arrays = {
        "states": streams.states.reshape(chosen.size, -1, rans_coder.LANES),
        "starts": streams.starts.reshape(chosen.size, -1, rans_coder.WARPS),
        "stream": streams.words,
        "table": jnp.asarray(rans_coder.decode_table(frequencies, probability_bits))[None],
        "scale": scale.reshape(-1, tile[0]),
        "prediction": jnp.asarray(numbers[chosen]),
    }
    filled = tuple(sorted(options.items()))
    t = TiledMatrix(arrays, "int8_rans", VERSION, shape, tile, filled)
    dense = TiledMatrix({"dense": w}, "int8_rans", VERSION, shape, tile, filled)
    return t if t.nbytes < dense.nbytes else dense


def _steps(tile: tuple[int, int]) -> int:
    """STEPS of a group."""
    return units_of_group(tile) * window_layout.REGISTERS * SINGLE.steps


def decode_values(t: TiledMatrix, index: jax.Array) -> jax.Array:
    """int8[rows, columns]: the values of tile `index` (int32 scalar) of a matrix not dense."""
    arrays, place, steps = t.arrays, place_of(t), _steps(t.tile)
    slot = place.first_slot + index
    table = arrays["table"][place.first_table][None]

    def group(states: jax.Array, starts: jax.Array) -> jax.Array:
        return rans_coder.decode_group(states, starts, arrays["stream"], table, steps)

    symbols = jax.vmap(group)(arrays["states"][slot], arrays["starts"][slot])
    residual = to_indices(symbols, t.tile, SINGLE).astype(jnp.int8)
    return restore(residual, arrays["prediction"][slot])


def decode_tile(t: TiledMatrix, index: jax.Array) -> jax.Array:
    """Decodes tile `index` (int32 scalar): bf16[rows, columns]; the definition of the format."""
    scale = t.arrays["scale"][place_of(t).first_row + index // t.grid[1]]
    return dequantise(decode_values(t, index).astype(jnp.int32), scale.astype(jnp.float32))


def values_of(t: TiledMatrix) -> jax.Array:
    """int8[OUT, K]: the values of a matrix that is not dense."""
    tiles = jax.lax.map(lambda index: decode_values(t, index), jnp.arange(t.tiles))
    return rows_of(tiles.reshape(*t.grid, *t.tile))[: t.shape[0], : t.shape[1]]
