"""The quantiser of `ecsq` against a search through all indices."""

import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs.ecsq_quantiser import (
    LAGRANGE,
    dead_zones,
    dequantise,
    quantise,
    row_scale,
    row_shifts,
)
from kernels_pallas.arg_specs import gaussian_weight


def laplacian_bits(largest: int, ratio: float) -> np.ndarray:
    """float64[largest + 1]: bits of indices whose magnitudes are geometric, signs included."""
    share = ratio ** np.arange(largest + 1)
    share /= share.sum()
    return -np.log2(share) + (np.arange(largest + 1) > 0)


@pytest.mark.parametrize("ratio", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_indices_minimise_error_and_rate_together(ratio: float, spread: float) -> None:
    step, largest = 0.01, 9
    # Important columns: elsewhere an index may be worth more than one step.
    importance = np.exp2(spread * np.random.default_rng(0).integers(0, 4, 128))
    w = gaussian_weight(64, 128, 0)
    bits = laplacian_bits(largest, ratio)
    index = quantise(
        w,
        jnp.full(64, step, jnp.float32),
        jnp.asarray(dead_zones(bits[None]), jnp.float32),
        jnp.array([largest]),
        jnp.zeros(64, jnp.int32),
        jnp.asarray(importance, jnp.float32),
    )
    scaled = np.abs(np.asarray(w, np.float64)) / np.float32(step)
    errors = np.square(scaled[..., None] - np.arange(largest + 1))
    costs = importance[:, None] * errors + LAGRANGE * bits
    chosen = np.take_along_axis(costs, np.abs(np.asarray(index))[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, costs.min(axis=-1), atol=1e-5)
    assert (np.sign(index) * np.sign(np.asarray(w, np.float64)) >= 0).all()


def test_rows_that_would_saturate_are_as_coarse_as_makes_their_error_least() -> None:
    w = gaussian_weight(64, 128, 1).at[3, 5].set(30.0).at[9, 0].set(0.2)
    step, largest = 0.001, 127
    shifts = row_shifts(w, step, np.full(64, largest))
    table = jnp.zeros(64, jnp.int32)
    zones = jnp.zeros((1, largest + 1), jnp.float32)
    every = jnp.ones(128)

    def errors(shift: np.ndarray) -> np.ndarray:
        scale = row_scale(jnp.float32(step), jnp.asarray(shift, jnp.uint32))
        values = dequantise(quantise(w, scale, zones, jnp.array([largest]), table, every), scale)
        wide = np.asarray(values, np.float64) - np.asarray(w, np.float64)
        return np.square(wide).sum(axis=1)

    each = np.stack([errors(np.full(64, shift)) for shift in range(32)])
    assert shifts[3] > 24
    assert 0 < shifts[9] < 6
    within = np.asarray(jnp.max(jnp.abs(w), axis=1)) <= step * (largest + 0.5)
    assert within.sum() > 40
    assert (shifts[within] == 0).all()
    chosen = np.take_along_axis(each, shifts[None], axis=0)[0]
    np.testing.assert_array_less(chosen[~within], 1.35 * each.min(axis=0)[~within] + 1e-12)


def test_scales_are_quarters_of_octaves() -> None:
    scale = np.asarray(row_scale(jnp.float32(0.3), jnp.arange(32, dtype=jnp.uint32)))
    np.testing.assert_allclose(scale, 0.3 * 2.0 ** (np.arange(32) / 4), rtol=1e-6)
    assert (scale[::4] == np.float32(0.3) * 2.0 ** np.arange(8)).all()
