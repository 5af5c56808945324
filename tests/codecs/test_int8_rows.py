"""Rows as int8 values and scales, against numpy, and rows whose scales are special."""

import chex
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from codecjax.codecs.int8_rows import quantise
from kernels_pallas.arg_specs import gaussian_weight

DTYPES = {16: ml_dtypes.bfloat16, 32: np.float32}
every_scale = pytest.mark.parametrize("bits", DTYPES)


@every_scale
def test_values_and_scales_are_as_described(bits: int) -> None:
    w = gaussian_weight(64, 700, 0).at[5].set(0)
    values, scale = quantise(w, bits)
    scale, wide = np.asarray(scale), np.asarray(w, np.float64)
    expected = (np.abs(wide).max(axis=1).astype(np.float32) / np.float32(127)).astype(DTYPES[bits])
    np.testing.assert_allclose(scale, expected, rtol=0 if bits == 16 else 1.2e-7)
    divisor = np.where(scale > 0, scale.astype(np.float64), 1)[:, None]
    quotient = wide / divisor
    from_tie = np.abs(np.abs(quotient) % 1 - 0.5)
    # Of float32 scales all that is nearly a tie may be taken for one.
    clear = (from_tie > 1e-5) | (bits == 16)
    nearest = np.clip(np.round(quotient), -127, 127).astype(np.int8)
    chex.assert_trees_all_equal(np.asarray(values)[clear], nearest[clear])
    assert (from_tie == 0).sum() > 10 or bits == 32
    # Half a step, and what is cut off where rounding made a scale too small for 127 of it.
    error = np.abs(values * divisor - wide)
    assert (error <= (0.5 + (127 / 256 if bits == 16 else 1e-4)) * divisor).all()
    assert np.abs(np.asarray(values)).max(axis=1).min(where=expected > 0, initial=127) >= 126


@every_scale
def test_no_finite_row_becomes_infinite_or_nan(bits: int) -> None:
    largest = float(jnp.finfo(jnp.bfloat16).max)
    tops = np.array([largest, 2.0**127, 2.0**-119, 2.0**-120, 2.0**-133, 0.0], np.float32)
    row = np.linspace(-1, 1, 128, dtype=np.float32)
    w = jnp.asarray(tops[:, None] * row).astype(jnp.bfloat16)
    values, scale = quantise(w, bits)
    wide = np.asarray(scale).astype(np.float32)
    decoded = (np.asarray(values, np.float32) * wide[:, None]).astype(ml_dtypes.bfloat16)
    assert np.isfinite(decoded.astype(np.float32)).all()
    kept = tops >= 2.0**-119
    chex.assert_trees_all_equal(wide > 0, kept)
    assert not np.asarray(values)[~kept].any()
    error = np.abs(decoded.astype(np.float64) - np.asarray(w, np.float64))[kept]
    assert (error <= tops[kept, None].astype(np.float64) * 1.01 / 127).all()
