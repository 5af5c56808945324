"""Reports of distortion, recomputed by other means."""

import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs import encode
from codecjax.codecs.distortion import gaussian_bound, measure
from codecjax.operations import decode
from kernels_pallas.arg_specs import gaussian_weight


def bound_by_bisection(variances: np.ndarray, share: np.ndarray, mse: float) -> float:
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        water = (low + high) / 2
        low, high = (water, high) if np.minimum(water, variances) @ share < mse else (low, water)
    return float(np.maximum(0, np.log2(variances / water) / 2) @ share)


@pytest.mark.parametrize("mse", [1e-4, 0.02, 0.3, 1.5])
def test_bound_is_reverse_water_filling(mse: float) -> None:
    random = np.random.default_rng(0)
    variances, weights = random.lognormal(size=40), random.integers(1, 9, 40)
    expected = bound_by_bisection(variances, weights / weights.sum(), mse)
    assert gaussian_bound(variances, weights, mse) == pytest.approx(expected, abs=1e-9)


def test_bound_is_zero_where_the_error_is_the_variance() -> None:
    variances, weights = np.array([0.0, 1.0, 3.0]), np.ones(3)
    assert gaussian_bound(variances, weights, 4 / 3 + 1e-12) == 0
    assert gaussian_bound(np.full(3, 4.0), weights, 1.0) == pytest.approx(1)


def test_report_is_what_the_arrays_say() -> None:
    matrices = [gaussian_weight(256, 256, 0), gaussian_weight(300, 512, 1)]
    stored = [encode(w, "ecsq", bits_per_weight=4) for w in matrices]
    found = measure(list(zip(matrices, stored, strict=True)))
    wide = [np.asarray(w, np.float64) for w in matrices]
    errors = [
        np.square(w - np.asarray(decode(t), np.float64)) for w, t in zip(wide, stored, strict=True)
    ]
    total = sum(w.size for w in wide)
    error = sum(each.sum() for each in errors)
    assert found.weights == total
    assert found.mse == pytest.approx(error / total, rel=1e-4)
    assert found.bits_per_weight == 8 * sum(t.nbytes for t in stored) / total
    power = sum(np.square(w).sum() for w in wide)
    assert found.signal_to_noise_db == pytest.approx(10 * np.log10(power / error), abs=1e-3)


def test_gap_to_the_bound_is_that_of_scalar_quantisation_and_the_overhead() -> None:
    w = (0.02 * np.random.default_rng(0).normal(size=(1024, 1024))).astype(np.float32)
    w = jnp.asarray(w).astype(jnp.bfloat16)
    t = encode(w, "ecsq", bits_per_weight=5)
    gap = measure([(w, t)]).gap_bits
    assert gap is not None
    # log2(pi e / 6) / 2; states are 1/8 bit, of which they hold 1/32, tables and rows 1/20.
    assert 0.2546 < gap < 0.2546 + 0.25


def test_no_error_has_no_bound() -> None:
    w = gaussian_weight(64, 128, 0)
    found = measure([(w, encode(w, "window", (64, 128)))])
    assert (found.mse, found.gaussian_bound_bits, found.gap_bits) == (0.0, None, None)
