"""Prediction of int8 values from neighbours in their tile, and its inverse.

The residual of a value is value - prediction, modulo 256, and the prediction is

    none      0
    left      the value to the left
    top       the value above
    avg       floor((left + top) / 2)
    planar    left + top - the value above the one to the left

where values outside of the tile are 0. They are the filters of PNG (ISO/IEC 15948, section 9)
and of image coders since; planar without the choice that PNG's Paeth filter makes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

PREDICTIONS = ("none", "left", "top", "avg", "planar")


def _shifted(values: jax.Array, axis: int) -> jax.Array:
    """Each value's predecessor along an axis; 0 for the first."""
    padding = [(0, 0)] * values.ndim
    padding[axis] = (1, 0)
    return jax.lax.slice_in_dim(jnp.pad(values, padding), 0, values.shape[axis], axis=axis)


def _mean(left: jax.Array, top: jax.Array) -> jax.Array:
    """int8: floor of the mean of two int8."""
    return ((left.astype(jnp.int32) + top.astype(jnp.int32)) >> 1).astype(jnp.int8)


def residuals(values: jax.Array, prediction: str) -> jax.Array:
    """int8[..., rows, columns]: residuals of the values int8[..., rows, columns] of tiles.

    Args:
      values: of whole tiles.
      prediction: one of PREDICTIONS.
    """
    if prediction == "none":
        return values
    down, across = values.ndim - 2, values.ndim - 1
    left, top = _shifted(values, across), _shifted(values, down)
    if prediction == "left":
        return values - left
    if prediction == "top":
        return values - top
    if prediction == "avg":
        return values - _mean(left, top)
    return values - left - top + _shifted(top, across)


def _restore_avg(residual: jax.Array) -> jax.Array:
    """Inverse of avg: an anti-diagonal at a time, whose values depend on the one before alone."""
    rows, columns = residual.shape
    row = jnp.arange(rows)
    diagonals = jnp.arange(rows + columns - 1)

    def step(before: jax.Array, diagonal: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Values int8[rows] of one, given those of the one before; 0 outside of the tile."""
        column = diagonal - row
        inside = (column >= 0) & (column < columns)
        mine = residual.at[row, column].get(mode="clip")
        values = jnp.where(inside, mine + _mean(before, _shifted(before, 0)), jnp.int8(0))
        return values, values

    _, skewed = jax.lax.scan(step, jnp.zeros(rows, jnp.int8), diagonals)
    return skewed[row[:, None] + jnp.arange(columns), row[:, None]]


def _summed(axis: int, values: jax.Array) -> jax.Array:
    # Sums wrap around, as residuals do.
    return jnp.cumsum(values, axis=axis, dtype=jnp.int8)


_INVERSES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda residual: residual,
    "left": lambda residual: _summed(1, residual),
    "top": lambda residual: _summed(0, residual),
    "avg": _restore_avg,
    "planar": lambda residual: _summed(0, _summed(1, residual)),
}


def restore(residual: jax.Array, number: jax.Array) -> jax.Array:
    """The values int8[rows, columns] of one tile.

    Args:
      residual: int8[rows, columns].
      number: scalar, of the prediction in PREDICTIONS; the last one where it is beyond.
    """
    branches = [_INVERSES[prediction] for prediction in PREDICTIONS]
    return jax.lax.switch(number.astype(jnp.int32), branches, residual)


def restore_tiles(residual: jax.Array, number: jax.Array) -> jax.Array:
    """`restore` of all tiles at once: each prediction that occurs costs as if all tiles had it.

    Args:
      residual: int8[T, rows, columns].
      number: [T].
    """
    number = jnp.minimum(number.astype(jnp.int32), len(PREDICTIONS) - 1)[:, None, None]
    values = residual
    for place, prediction in enumerate(PREDICTIONS[1:], start=1):
        inverse, here = jax.vmap(_INVERSES[prediction]), number == place
        values = jax.lax.cond(
            jnp.any(here),
            lambda values, inverse=inverse, here=here: jnp.where(here, inverse(residual), values),
            lambda values: values,
            values,
        )
    return values
