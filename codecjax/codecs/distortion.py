"""What a lossy codec made of a weight: rate, distortion, and the bound of rate-distortion theory.

The bound takes each row as Gaussian, independent, of its own variance. Under a mean squared error
D over all rows, reverse water-filling (T. M. Cover, J. A. Thomas, "Elements of Information
Theory", 2nd ed., section 10.3.3) gives row i the error min(water, variance_i) and the rate

    max(0, log2(variance_i / water) / 2)

with the water level at which the errors' mean is D. Entropy-coded scalar quantisation needs
log2(pi e / 6) / 2 = 0.2546 bits more at high rates (H. Gish, J. N. Pierce, 1968). Of sources with
one variance the Gaussian has the largest bound, so that others may come below.
"""

import dataclasses
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.operations import decode
from codecjax.tiles import TiledMatrix


@dataclasses.dataclass(frozen=True)
class Distortion:
    """Rate and distortion of matrices that were stored together.

    Attributes:
      weights: how many.
      bits_per_weight: everything included.
      mse: mean squared error of a weight.
      signal_to_noise_db: 10 log10(mean square of a weight / mse); None where `mse` is 0.
      gaussian_bound_bits: bits a weight that Gaussian rows need for this `mse`; None where it is 0.
    """

    weights: int
    bits_per_weight: float
    mse: float
    signal_to_noise_db: float | None
    gaussian_bound_bits: float | None

    @property
    def gap_bits(self) -> float | None:
        """Bits a weight above the bound."""
        if self.gaussian_bound_bits is None:
            return None
        return self.bits_per_weight - self.gaussian_bound_bits


@jax.jit
def _row_sums(w: jax.Array, decoded: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32[OUT] twice: mean squares of rows of bf16[OUT, K] and of their errors."""
    wide = w.astype(jnp.float32)
    error = wide - decoded.astype(jnp.float32)
    return jnp.mean(jnp.square(wide), axis=1), jnp.mean(jnp.square(error), axis=1)


def gaussian_bound(variances: np.ndarray, weights: np.ndarray, mse: float) -> float:
    """Bits a weight that independent Gaussian rows need at a mean squared error.

    Args:
      variances: float64[ROWS].
      weights: [ROWS], how many each row has.
      mse: above 0.
    """
    share = weights / weights.sum()
    order = np.argsort(variances)
    ascending, share = variances[order], share[order]
    # With the water at the variance of row i, all below it are drowned.
    below = np.cumsum(share * ascending) - share * ascending
    above = 1 - (np.cumsum(share) - share)
    drowned = int(np.searchsorted(below + above * ascending, mse))
    if drowned == len(ascending):
        return 0.0
    water = (mse - below[drowned]) / above[drowned]
    return float((share[drowned:] * np.log2(ascending[drowned:] / water)).sum() / 2)


def measure(pairs: Iterable[tuple[jax.Array, TiledMatrix]]) -> Distortion:
    """Decodes matrices and compares them with what was encoded.

    Args:
      pairs: bf16[OUT, K] weights, and what they are stored as, taken one after another.
    """
    squares, errors, counts, nbytes = [], [], [], 0
    for w, t in pairs:
        square, error = _row_sums(w, decode(t))
        squares.append(np.asarray(square, np.float64))
        errors.append(np.asarray(error, np.float64))
        counts.append(np.full(t.shape[0], t.shape[1]))
        nbytes += t.nbytes
    variances, of_row = np.concatenate(squares), np.concatenate(counts)
    total = int(of_row.sum())
    mse = float(np.concatenate(errors) @ of_row) / total
    mean_square = float(variances @ of_row) / total
    return Distortion(
        weights=total,
        bits_per_weight=8 * nbytes / total,
        mse=mse,
        signal_to_noise_db=10 * math.log10(mean_square / mse) if mse else None,
        gaussian_bound_bits=gaussian_bound(variances, of_row, mse) if mse else None,
    )
