"""Errors of `ecsq` where some columns are more important than others."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs import encode, plan
from codecjax.codecs.ecsq_importance import levels_of
from codecjax.errors import UserError
from codecjax.operations import decode
from codecjax.tiles import TiledMatrix
from kernels_pallas.arg_specs import gaussian_weight

IMPORTANCE = np.exp(np.random.default_rng(0).normal(size=512)).astype(np.float32)


def column_errors(w: jax.Array, t: TiledMatrix) -> np.ndarray:
    """float64[K]: mean squared errors of columns."""
    error = np.asarray(w, np.float64) - np.asarray(decode(t), np.float64)
    return np.square(error).mean(axis=0)


@pytest.mark.parametrize("rate", [2.0, 3.0])
def test_the_weighted_error_falls_at_the_same_rate(rate: float) -> None:
    w = gaussian_weight(512, 512, 0)
    plain = encode(w, "ecsq", bits_per_weight=rate)
    weighed = encode(w, "ecsq", bits_per_weight=rate, importance=IMPORTANCE)
    assert weighed.bits_per_weight == pytest.approx(rate, rel=0.006)
    assert plain.bits_per_weight == pytest.approx(rate, rel=0.006)
    before, after = (column_errors(w, t) for t in (plain, weighed))
    assert IMPORTANCE @ after < 0.97 * (IMPORTANCE @ before)
    assert after.mean() > before.mean()
    # The most important columns gain, the least important lose.
    order = np.argsort(IMPORTANCE)
    assert after[order[-128:]].mean() < 0.95 * before[order[-128:]].mean()
    assert after[order[:128]].mean() > 1.05 * before[order[:128]].mean()


@pytest.mark.parametrize("shape", [(512, 512), (300, 200)])
def test_equal_importance_gives_the_plain_result_whatever_its_size(shape: tuple[int, int]) -> None:
    w = gaussian_weight(*shape, 1)
    plain = encode(w, "ecsq", bits_per_weight=4)
    weighed = encode(w, "ecsq", bits_per_weight=4, importance=np.full(shape[1], 7e-12))
    chex.assert_trees_all_equal(weighed.arrays, plain.arrays)


def test_matrices_that_are_planned_together_meet_the_rate() -> None:
    matrices = [gaussian_weight(512, 512, 2), gaussian_weight(256, 512, 3)]
    given = [IMPORTANCE, IMPORTANCE[::-1].copy()]
    found = plan("ecsq", lambda: matrices, (256, 256), 1, given, bits_per_weight=3.0)
    unweighed = plan("ecsq", lambda: matrices, (256, 256), 1, bits_per_weight=3.0)
    assert found.expected_bits == pytest.approx(3, rel=0.005)
    assert found.step < unweighed.step


def test_levels_are_half_octaves_about_the_mean_and_padding_is_average() -> None:
    importance = np.array([1, 1, 2**-0.5, 2**0.5, 2**-20], np.float32)
    scaled = importance / importance.mean()
    expected = np.round(2 * np.log2(scaled[:4])).astype(int).tolist()
    assert levels_of(importance, 8).tolist() == [*expected, -6, 0, 0, 0]
    assert levels_of(None, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_importance_that_is_none_is_named(value: float) -> None:
    importance = jnp.ones(256).at[9].set(value)
    with pytest.raises(UserError, match=r"importance of column 9 is .*: give finite numbers above"):
        encode(gaussian_weight(256, 256, 0), "ecsq", importance=importance)


def test_importance_of_another_matrix_is_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(128,\) does not fit a weight of 256 columns"):
        encode(gaussian_weight(256, 256, 0), "ecsq", importance=np.ones(128))


def test_codecs_that_know_no_importance_say_so() -> None:
    with pytest.raises(UserError, match=r"codec 'window' knows no importance .* choose ecsq"):
        encode(gaussian_weight(64, 128, 0), "window", (64, 128), importance=np.ones(128))
