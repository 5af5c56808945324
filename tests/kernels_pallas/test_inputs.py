"""What a product is multiplied by, made in the kernel for few rows; and what is added to it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from codecjax.codecs import encode
from codecjax.errors import UserError
from kernels_pallas import few_rows_inputs, matmul_mosaic_gpu
from kernels_pallas.arg_specs import activations, gaussian_weight
from kernels_pallas.few_rows_inputs import made_here
from kernels_pallas.few_rows_mosaic_gpu import FewRowsConfig
from kernels_pallas.implementations import XLA
from kernels_pallas.inputs import Gated, Made, Mixed, Normed, value_of

NO_TILE = jnp.int32(0)
EPS = 1e-5


def mixed(k: int) -> Mixed:
    """Of heads of 64 and three parts, of which the last has no position."""
    heads, parts, head_dim = k // 64, 3, 64
    mixtures = activations(heads * parts, head_dim, seed=1).astype(jnp.float32)
    weights = 3 * activations(heads, parts, seed=2).astype(jnp.float32)
    weights = weights.at[:, -1].set(-1e30)
    return Mixed(mixtures.reshape(heads, parts, head_dim), weights, "bfloat16")


def made(kind: type[Made], n: int, k: int) -> Made:
    if kind is Mixed:
        assert n == 1
        return mixed(k)
    first, second, scale = (
        3 * activations(rows, k, seed).astype(jnp.float32)
        for seed, rows in enumerate((n, n, 1), start=1)
    )
    if kind is Normed:
        return Normed(first, scale[0].astype(jnp.bfloat16), EPS, "bfloat16")
    return Gated(first, second, "bfloat16")


def expected(x: Made) -> np.ndarray:
    """float64[N, K] by the definition."""
    if isinstance(x, Normed):
        wide = np.asarray(x.x, np.float64)
        root = np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + EPS)
        return wide / root * np.asarray(x.scale, np.float64)
    if isinstance(x, Mixed):
        shares = np.exp(np.asarray(x.weights, np.float64))
        shares /= shares.sum(axis=1, keepdims=True)
        return np.einsum("hp,hpd->hd", shares, np.asarray(x.parts, np.float64)).reshape(1, -1)
    gate = np.asarray(x.gate, np.float64)
    return gate / (1 + np.exp(-gate)) * np.asarray(x.up, np.float64)


@pytest.mark.parametrize(("kind", "n", "k"), [(Normed, 3, 100), (Gated, 3, 100), (Mixed, 1, 192)])
def test_the_value_is_by_the_definition(kind: type[Made], n: int, k: int) -> None:
    x = made(kind, n, k)
    np.testing.assert_allclose(
        np.asarray(value_of(x), np.float64), expected(x), rtol=2**-8, atol=1e-30
    )


# Kind, rows and columns of x, warpgroups of a CTA.
SIZES = [(1, 512, 1), (3, 700, 2), (8, 256, 1)]
PRODUCTS = [
    *((kind, *sizes) for kind in (Normed, Gated) for sizes in SIZES),
    (Mixed, 1, 512, 1),
    (Mixed, 1, 192, 2),
]


@pytest.mark.parametrize(("kind", "n", "k", "warpgroups"), PRODUCTS)
def test_a_product_made_in_the_kernel(kind: type[Made], n: int, k: int, warpgroups: int) -> None:
    """Within the rounding of x to bf16 of float64; the same bits whatever the codec."""
    w, x = gaussian_weight(100, k, seed=4), made(kind, n, k)
    assert made_here(x)
    added = activations(n, 100, seed=5).astype(jnp.float32)

    def product(codec: str) -> jax.Array:
        config, t = FewRowsConfig(warpgroups), encode(w, codec=codec)
        (y,), _ = matmul_mosaic_gpu.matmul(
            x, (t,), None, NO_TILE, added, config=config, interpret=True
        )
        return y

    y = product("window")
    # x is made before weights are looked at: one size of each kind is enough.
    if n == 1:
        chex.assert_trees_all_equal(y, product("bf16"))
    exact = expected(x) @ np.asarray(w, np.float64).T
    error = np.asarray(y, np.float64) - np.asarray(added, np.float64) - exact
    assert np.linalg.norm(error) < 2**-8 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("kind", "n", "k"), [(Normed, 8, 4096), (Gated, 8, 4096), (Mixed, 1, 2**14 + 256)]
)
def test_long_rows_are_not_made_in_the_kernel(kind: type[Made], n: int, k: int) -> None:
    assert not made_here(made(kind, n, k))


@pytest.mark.parametrize(("kind", "n"), [(Normed, 8), (Gated, 8), (Mixed, 1)])
def test_long_rows_are_made_before_the_kernel(
    kind: type[Made], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    k = 512
    # The interpreter is slow: rows that are long by a lower bound.
    monkeypatch.setitem(few_rows_inputs._MOST, kind, n * k - 1)
    x = made(kind, n, k)
    w = encode(gaussian_weight(64, k, seed=4), codec="bf16")
    (y,), _ = matmul_mosaic_gpu.matmul(x, (w,), None, NO_TILE, interpret=True)
    (same,), _ = matmul_mosaic_gpu.matmul(x.value(), (w,), None, NO_TILE, interpret=True)
    chex.assert_trees_all_equal(y, same)


@pytest.mark.parametrize("n", [2, 9], ids=["few rows", "more rows"])
def test_what_is_added_is_added(n: int) -> None:
    w, x = encode(gaussian_weight(100, 256, seed=4)), activations(n, 256, seed=1)
    added = activations(n, 100, seed=5).astype(jnp.float32)
    (alone,), _ = matmul_mosaic_gpu.matmul(x, (w,), None, NO_TILE, interpret=True)
    (y,), _ = matmul_mosaic_gpu.matmul(x, (w,), None, NO_TILE, added, interpret=True)
    chex.assert_trees_all_equal(y, added + alone)
    by_xla = [kernels_pallas.matmul_all(x, (w,), added=a, implementation=XLA)[0] for a in (added,)]
    np.testing.assert_allclose(np.asarray(by_xla[0][0]), np.asarray(y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("matrices", [1, 2])
def test_what_does_not_fit_the_product_is_refused(matrices: int) -> None:
    w, x = encode(gaussian_weight(100, 256, seed=4)), activations(2, 256, seed=1)
    added = jnp.zeros((2, 100 if matrices == 2 else 99))
    with pytest.raises(UserError, match="cannot be added to products"):
        kernels_pallas.matmul_all(x, (w,) * matrices, added=added, implementation=XLA)


def test_inputs_pass_through_jit() -> None:
    x = made(Normed, 2, 64)
    chex.assert_trees_all_equal(jax.jit(value_of)(x), x.value())
