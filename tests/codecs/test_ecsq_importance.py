"""Errors of `ecsq` where some columns are more important than others."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs import encode, plan
from codecjax.codecs.ecsq_feedback import compensated, factors
from codecjax.codecs.ecsq_levels import levels_of
from codecjax.codecs.ecsq_quantiser import dead_zones, quantise
from codecjax.errors import UserError
from codecjax.operations import decode
from codecjax.tiles import TiledMatrix
from kernels_pallas.arg_specs import gaussian_weight

IMPORTANCE = np.exp(np.random.default_rng(0).normal(size=512)).astype(np.float32)


def correlated_products(columns: int, seed: int) -> np.ndarray:
    """float32[K, K]: mean products of inputs that have most of their power in few directions."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(columns, columns)) * np.exp(random.normal(size=columns))
    return (mixed @ mixed.T / columns).astype(np.float32)


def product_error(w: jax.Array, t: TiledMatrix, products: np.ndarray) -> float:
    """Mean squared error of x W^T, of one output."""
    error = np.asarray(w, np.float64) - np.asarray(decode(t), np.float64)
    return float(np.einsum("oj,jk,ok->", error, products, error)) / len(error)


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
    fed_back = encode(w, "ecsq", bits_per_weight=4, importance=3 * np.eye(shape[1]))
    chex.assert_trees_all_equal(fed_back.arrays, plain.arrays)


@pytest.mark.parametrize("shape", [(512, 512), (300, 200)])
def test_feedback_reduces_the_error_of_products_at_the_same_rate(shape: tuple[int, int]) -> None:
    w, products = gaussian_weight(*shape, 1), correlated_products(shape[1], 0)
    ways = {"plain": None, "diagonal": np.diagonal(products).copy(), "feedback": products}
    errors = {}
    for name, importance in ways.items():
        t = encode(w, "ecsq", (64, 128), importance=importance, bits_per_weight=4)
        assert t.bits_per_weight == pytest.approx(4, rel=0.02)
        errors[name] = product_error(w, t, products)
    assert errors["feedback"] < 0.6 * min(errors["plain"], errors["diagonal"])


def test_feedback_is_gptq() -> None:
    w, products = gaussian_weight(64, 256, 4), correlated_products(256, 1)
    diagonal, taken = factors(products)
    scale = jnp.full(64, 0.015, jnp.float32)
    zones = jnp.asarray(dead_zones(np.array([[1.0, 3.0, 5.0, 8.0]])), jnp.float32)
    given = (scale, zones, jnp.array([3]), jnp.zeros(64, jnp.int32))
    importance = jnp.asarray(diagonal / diagonal.mean())
    index, weights = compensated(w, *given, importance, jnp.asarray(taken))
    # Column by column, with the inverse Hessian of the columns that are left.
    left = np.asarray(w, np.float64)
    damped = products.astype(np.float64)
    damped += 0.01 * np.diagonal(damped).mean() * np.eye(256)
    for column in range(256):
        inverse = np.linalg.inv(damped[column:, column:])
        np.testing.assert_allclose(diagonal[column], 1 / inverse[0, 0], rtol=1e-3)
        np.testing.assert_allclose(weights[:, column], left[:, column], rtol=1e-3, atol=1e-5)
        own = weights[:, column, None]
        expected = quantise(own, *given, importance[column, None])[:, 0]
        np.testing.assert_array_equal(index[:, column], expected)
        value = np.asarray((expected * scale).astype(jnp.bfloat16), np.float64)
        error = (left[:, column] - value) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]


def test_products_that_no_inputs_have_are_refused() -> None:
    w = gaussian_weight(256, 256, 0)
    for products in (-np.eye(256), np.zeros((256, 256))):
        with pytest.raises(UserError, match=r"no Cholesky factor: give mean products of inputs"):
            encode(w, "ecsq", importance=products)


def test_inputs_that_are_silent_do_no_harm() -> None:
    products = correlated_products(512, 2)
    products[:, 5] = products[5] = 0
    w = gaussian_weight(512, 512, 5)
    t = encode(w, "ecsq", bits_per_weight=4, importance=products)
    assert product_error(w, t, products) < 0.6 * product_error(
        w, encode(w, "ecsq", bits_per_weight=4), products
    )


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
def test_importance_that_is_no_positive_number_is_named(value: float) -> None:
    importance = jnp.ones(256).at[9].set(value)
    with pytest.raises(UserError, match=r"importance of column 9 is .*: give finite numbers above"):
        encode(gaussian_weight(256, 256, 0), "ecsq", importance=importance)


def test_importance_of_another_matrix_is_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(128,\) does not fit a weight of 256 columns"):
        encode(gaussian_weight(256, 256, 0), "ecsq", importance=np.ones(128))


def test_codecs_that_know_no_importance_say_so() -> None:
    with pytest.raises(UserError, match=r"codec 'window' knows no importance .* choose ecsq"):
        encode(gaussian_weight(64, 128, 0), "window", (64, 128), importance=np.ones(128))
