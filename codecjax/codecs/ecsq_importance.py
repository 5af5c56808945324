"""What `ecsq` is told of the inputs that a matrix multiplies: checked, and in its own terms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs.ecsq_feedback import factors
from codecjax.codecs.ecsq_levels import levels_of
from codecjax.errors import UserError


def check_importance(importance: jax.Array | np.ndarray, columns: int) -> np.ndarray:
    """float32[K] or float32[K, K], checked to be of that many `columns`; else UserError."""
    found = np.asarray(importance, np.float32)
    if found.shape not in ((columns,), (columns, columns)):
        raise UserError(
            f"importance of shape {found.shape} does not fit a weight of {columns} columns: give "
            f"one number a column, shape ({columns},), or mean products of inputs, shape "
            f"({columns}, {columns})"
        )
    is_bad = ~np.isfinite(found)
    if found.ndim == 1:
        is_bad |= found <= 0
    if is_bad.any():
        place = tuple(np.argwhere(is_bad)[0].tolist())
        raise UserError(
            f"importance of column {', '.join(map(str, place))} is {found[place]:g}: "
            "give finite numbers above 0, as mean squares of inputs are, or finite mean products"
        )
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Weighing:
    """How errors of a padded matrix's columns count.

    Attributes:
      levels: int[K], of their importance.
      taken: float32[K, K] of `ecsq_feedback.factors`, or None where errors are not fed back.
    """

    levels: np.ndarray
    taken: jax.Array | None = None


def weighing(importance: np.ndarray | None, columns: int) -> Weighing:
    """Of a matrix that was padded to `columns`.

    Args:
      importance: float32[K], float32[K, K], or None where all columns are as important.
      columns: at least K.
    """
    if importance is None or importance.ndim == 1:
        return Weighing(levels_of(importance, columns))
    diagonal, taken = factors(importance)
    padding = columns - len(taken)
    return Weighing(
        levels_of(diagonal, columns), jnp.asarray(np.pad(taken, ((0, padding), (0, padding))))
    )
