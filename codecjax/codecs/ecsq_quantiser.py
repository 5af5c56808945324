"""The scalar quantiser of `ecsq`: uniform reconstruction, and thresholds that weigh rate.

A weight w of a row with step s becomes the index q of the same sign that minimises

    (|w| / s - q)^2 + LAGRANGE * bits(q)

so q is |w| / s rounded, or one less where |w| / s < q - 1/2 + dead_zone[q], with

    dead_zone[q] = LAGRANGE / 2 * (bits(q) - bits(q - 1))

which is what makes the zone of 0 wider than the others. Its value is q * s, rounded to bf16.
Where errors of a column count `importance` times, its dead zones are that much narrower.
(G. J. Sullivan, "Efficient scalar quantization of exponential and Laplacian random variables",
IEEE Trans. Information Theory 42(5), 1996, shows that it is optimal for such sources.)
"""

import jax
import jax.numpy as jnp
import numpy as np

# The slope of distortion against rate, in squared steps a bit, where the step is small: there
# D = s^2 / 12 and D falls by 2 ln 2 D a bit.
LAGRANGE = np.log(2) / 6
_LARGEST_BF16 = float(jnp.finfo(jnp.bfloat16).max)
# A shift has 5 bits.
SHIFTS = 32
# What a quarter of an octave multiplies a step by, none to three of them.
QUARTERS = np.exp2(np.arange(4) / 4).astype(np.float32)


def dead_zones(bits: np.ndarray) -> np.ndarray:
    """float64[TABLES, Q + 1]: each index's dead zone at importance 1; bits[TABLES, Q + 1]."""
    return LAGRANGE / 2 * np.diff(bits, axis=-1, prepend=bits[:, :1])


def weighted_zones(zones: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """float64[TABLES, L, Q + 1]: dead zones at each importance float64[L], as `quantise` has them.

    Args:
      zones: [TABLES, Q + 1], `dead_zones`.
      importance: [L], above 0.
    """
    # Within these, the rounded index and the one below are the only candidates.
    return np.clip(zones[:, None] / importance[:, None], 0, 1)


@jax.jit
def _errors(w: jax.Array, step: jax.Array, largest: jax.Array) -> jax.Array:
    """float32[SHIFTS, OUT]: about the mean squared error of each row, in squares of `step`."""
    magnitude = jnp.abs(w).astype(jnp.float32) / step

    def with_shift(shift: jax.Array) -> jax.Array:
        scale = row_scale(jnp.float32(1), shift)
        beyond = jnp.maximum(magnitude - (largest[:, None] + 0.5) * scale, 0)
        saturated = jnp.where(beyond > 0, jnp.square(beyond + scale / 2), 0)
        # Below half a step the error of a weight is the weight.
        rounded = jnp.minimum(jnp.square(magnitude), jnp.square(scale) / 12)
        return jnp.mean(jnp.where(beyond > 0, saturated, rounded), axis=1)

    return jax.lax.map(with_shift, jnp.arange(SHIFTS, dtype=jnp.uint32))


def row_shifts(w: jax.Array, step: float, largest: np.ndarray) -> np.ndarray:
    """int[OUT]: by how many quarters of an octave the step of each row is coarser than `step`.

    For most rows by none. One with weights beyond `largest` steps may let these saturate or be
    coarser everywhere: it takes what makes its squared error least.

    Args:
      w: bf16[OUT, K].
      step: of rows that are not shifted.
      largest: int[OUT], largest index of each row.
    """
    shifts = np.zeros(w.shape[0], int)
    top = np.asarray(jnp.max(jnp.abs(w), axis=1)).astype(np.float64)
    beyond = np.flatnonzero(top > step * (largest + 0.5))
    if beyond.size:
        # As many as a power of two, some repeated, so that few different programs are compiled.
        rows = np.resize(beyond, 1 << int(beyond.size - 1).bit_length())
        errors = _errors(w[rows], jnp.float32(step), jnp.asarray(largest[rows]))
        shifts[beyond] = np.asarray(jnp.argmin(errors, axis=0))[: beyond.size]
    return shifts


@jax.jit
def quantise(
    w: jax.Array,
    scale: jax.Array,
    zones: jax.Array,
    largest: jax.Array,
    table: jax.Array,
    importance: jax.Array,
) -> jax.Array:
    """Indices of weights.

    Args:
      w: bf16[OUT, K], finite.
      scale: float32[OUT], each row's step.
      zones: float32[TABLES, Q + 1], `dead_zones` of each table's bits.
      largest: int32[TABLES], largest index of each table.
      table: int32[OUT], each row's table.
      importance: float32[K], how much errors of each column count.

    Returns:
      int16[OUT, K], -Q..Q.
    """
    magnitude = jnp.abs(w).astype(jnp.float32) / scale[:, None]
    # Nor may a value be too large for bf16.
    most = jnp.minimum(largest[table], jnp.floor(_LARGEST_BF16 / scale))
    index = jnp.floor(jnp.minimum(magnitude, most[:, None]) + 0.5).astype(jnp.int32)
    index = jnp.minimum(index, most[:, None].astype(jnp.int32))
    zone = jnp.clip(zones[table[:, None], index] / importance, 0, 1)
    lower = magnitude < index.astype(jnp.float32) - 0.5 + zone
    index = jnp.maximum(index - lower.astype(jnp.int32), 0)
    return jnp.where(w < 0, -index, index).astype(jnp.int16)


def row_scale(step: jax.Array, shift: jax.Array) -> jax.Array:
    """float32[...]: step float32[...] times 2 ** (shift / 4), shift uint32[...] at most 31.

    The power of two is a constant of four, rounded to float32, doubled shift // 4 times.
    """
    shift = shift.astype(jnp.uint32)
    quarter = jnp.asarray(QUARTERS)[shift % 4]
    doubled = jax.lax.bitcast_convert_type((shift // 4 + 127) << 23, jnp.float32)
    return step * (quarter * doubled)


@jax.jit
def dequantise(index: jax.Array, scale: jax.Array) -> jax.Array:
    """bf16[OUT, K]: the values of indices int[OUT, K] in rows of steps float32[OUT]."""
    return (index.astype(jnp.float32) * scale[:, None]).astype(jnp.bfloat16)
