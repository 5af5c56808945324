"""The window chosen for a row of weights covers as much of it as any."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from codecjax.codecs.window_bases import row_bases

ROWS, COLUMNS, PADDED = 200, 500, 512


def rows(kind: str) -> np.ndarray:
    random = np.random.default_rng(0)
    size = (ROWS, COLUMNS)
    scale = np.exp(random.normal(size=(ROWS, 1)))
    match kind:
        case "Gaussian":
            return scale * random.normal(size=size)
        case "Laplace":
            return scale * random.laplace(size=size)
        case "uniform":
            return scale * random.uniform(-1, 1, size)
        case "outliers":
            return np.where(random.random(size) < 0.01, 16, 1) * random.normal(size=size)
        case "some zeros":
            return np.where(random.random(size) < 0.1, 0, random.normal(size=size))
        case "one wild weight":
            return np.where(np.arange(COLUMNS) == 17, 1e30, random.normal(size=size))
        case "constant":
            return np.broadcast_to(scale, size)
        case "zero":
            return np.zeros(size)
        case _:
            return np.full(size, np.inf)


KINDS = (
    "Gaussian",
    "Laplace",
    "uniform",
    "outliers",
    "some zeros",
    "one wild weight",
    "constant",
    "zero",
    "infinite",
)


@pytest.mark.parametrize("width", [8, 11, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_no_window_covers_more(kind: str, width: int) -> None:
    bits = rows(kind).astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    exponents = (bits >> 7 & 0xFF).astype(int)
    covered = np.stack(
        [
            ((exponents >= base) & (exponents < base + width)).sum(axis=1)
            for base in range(256 - width + 1)
        ],
        axis=1,
    )
    # What lies beyond the columns does not count.
    padded = np.pad(bits, ((0, 0), (0, PADDED - COLUMNS)), constant_values=0x7F80)
    base = np.asarray(row_bases(jnp.asarray(padded), COLUMNS, width))
    chosen = np.take_along_axis(covered, base[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(chosen, covered.max(axis=1))
