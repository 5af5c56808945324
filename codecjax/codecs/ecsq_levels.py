"""How much the errors of each input column count in `ecsq`: levels of importance.

The error of a product x W^T is, in the mean over x and to the second order, the sum over columns k
of E[x_k^2] times the squared errors of W's column k, if inputs are uncorrelated: the diagonal of
the Hessian of E. Frantar, D. Alistarh, "Optimal Brain Compression", 2022. An importance is that
share of each column, up to a factor; the quantiser minimises importance * error^2 + multiplier *
bits.

Levels are half octaves about a matrix's mean, so that counts of weights by level say all that the
search for a step needs; the encoder uses the same levels. Beyond three octaves dead zones are about
nothing, or as wide as they may be.
"""

import numpy as np

_LEVELS_PER_OCTAVE = 2
_FURTHEST = 3 * _LEVELS_PER_OCTAVE


def levels_of(importance: np.ndarray | None, columns: int) -> np.ndarray:
    """int[columns]: each column's level, its importance over the mean about 2 ** (level / 2).

    Args:
      importance: float32[K], or None where all columns are as important.
      columns: at least K; those from K on are padding.
    """
    levels = np.zeros(columns, int)
    if importance is not None:
        wide = importance.astype(np.float64)
        octaves = np.log2(wide / wide.mean())
        rounded = np.round(_LEVELS_PER_OCTAVE * octaves).astype(int)
        levels[: len(wide)] = np.clip(rounded, -_FURTHEST, _FURTHEST)
    return levels


def importance_of(levels: np.ndarray) -> np.ndarray:
    """float64[...]: what errors at levels int[...] count."""
    return np.exp2(levels / _LEVELS_PER_OCTAVE)
