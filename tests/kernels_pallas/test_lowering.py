"""The kernels are lowered for CUDA, which needs no GPU and catches what the interpreter accepts."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import kernels_pallas
from codecjax.codecs import encode, pooled
from codecjax.tiles import Residency
from kernels_pallas import decode_mosaic_gpu, matmul_mosaic_gpu
from kernels_pallas.arg_specs import gaussian_weight
from kernels_pallas.implementations import MOSAIC_GPU
from kernels_pallas.inputs import Gated, Made, Mixed, Normed
from tests.kernels_pallas.cases import CASES, FILLS, TOGETHER, Case, residency


def lower(function: Callable[..., Any], *arguments: Any) -> str:
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return str(lowered.as_text())


@pytest.mark.parametrize("paged", [False, True], ids=["unpaged", "paged"])
@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matmul(case: Case, n: int, paged: bool) -> None:
    t = case.tiled()
    text = lower(
        matmul_mosaic_gpu.matmul,
        jnp.zeros((n, case.shape[1]), jnp.bfloat16),
        (t,),
        residency(t, FILLS) if paged else None,
        jnp.int32(0),
    )
    assert "mosaic_gpu" in text


@pytest.mark.parametrize(("n", "dots"), [(2048, 0), (2049, 1)], ids=["kernel's", "XLA's"])
def test_matmul_of_many_rows(n: int, dots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many the matrix is decoded, and XLA multiplies."""
    # No GPU is needed to lower for one.
    monkeypatch.setattr(sys.modules["kernels_pallas.matmul"], "resolve", lambda name: name)
    t = encode(gaussian_weight(512, 512, seed=1))
    multiply = functools.partial(kernels_pallas.matmul, implementation=MOSAIC_GPU)
    text = lower(multiply, jnp.zeros((n, 512), jnp.bfloat16), t)
    assert text.count("dot_general") == dots
    assert text.count("custom_call @mosaic_gpu") == 1


WIDE = jnp.zeros((2, 500))
MADE = {
    "normed": Normed(WIDE, jnp.ones(500, jnp.bfloat16), 1e-5, "bfloat16"),
    "gated": Gated(WIDE, WIDE, "bfloat16"),
    "mixed": Mixed(jnp.zeros((5, 3, 128)), jnp.zeros((5, 3)), "bfloat16"),
}


@pytest.mark.parametrize("x", MADE.values(), ids=MADE)
@pytest.mark.parametrize("codec", ["window", "bf16"])
def test_matmul_that_makes_x_adds_and_asks_ahead(codec: str, x: Made) -> None:
    n, k = x.shape
    t = encode(gaussian_weight(300, k, seed=1), codec=codec)

    def multiply(x: Made, added: jax.Array) -> jax.Array:
        (y,), _ = matmul_mosaic_gpu.matmul(x, (t,), None, jnp.int32(0), added, (t,))
        return y

    text = lower(multiply, x, jnp.zeros((n, 300)))
    assert text.count("custom_call @mosaic_gpu") == 1
    # Nothing is left to XLA but padding and cutting.
    assert not {"rsqrt", "logistic", "exponential", "stablehlo.add"} & set(text.split())


@pytest.mark.parametrize(
    ("codec", "share", "paged"),
    [
        ("window", True, False),
        ("window", True, True),
        ("window", False, True),
        ("bf16", False, False),
    ],
    ids=["arrays shared", "arrays shared, paged", "arrays apart, paged", "dense"],
)
def test_matmul_of_matrices_that_share_x(codec: str, share: bool, paged: bool) -> None:
    matrices = tuple(dataclasses.replace(case, codec=codec).tiled() for case in TOGETHER)
    matrices = pooled(codec, matrices) if share else matrices
    tiles = sum(t.tiles for t in matrices)
    text = lower(
        matmul_mosaic_gpu.matmul,
        jnp.zeros((1, 512), jnp.bfloat16),
        matrices,
        residency(matrices[0], FILLS, tiles) if paged else None,
        jnp.int32(0),
    )
    assert text.count("custom_call @mosaic_gpu") == 1


def test_matmul_of_entropy_coded_matrices_that_share_arrays() -> None:
    """One kernel multiplies their units, and one adds up."""
    coded = tuple(dataclasses.replace(case, codec="rans").tiled() for case in TOGETHER)
    matrices = pooled("rans", coded)

    def products(x: jax.Array, arrays: dict[str, jax.Array], held: Residency) -> Any:
        sharing = tuple(dataclasses.replace(t, arrays=arrays) for t in matrices)
        return matmul_mosaic_gpu.matmul(x, sharing, held, jnp.int32(0))

    x, tiles = jnp.zeros((1, 512), jnp.bfloat16), sum(t.tiles for t in matrices)
    text = lower(products, x, matrices[0].arrays, residency(matrices[0], FILLS, tiles))
    assert text.count("custom_call @mosaic_gpu") == 2


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.codec != "bf16"], ids=lambda case: case.name
)
def test_fill(case: Case) -> None:
    t = case.tiled()
    assert "mosaic_gpu" in lower(decode_mosaic_gpu.fill, t, residency(t, FILLS), jnp.int32(0))


@pytest.mark.parametrize("paged", [False, True], ids=["unpaged", "paged"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.codec != "bf16"], ids=lambda case: case.name
)
def test_decode(case: Case, paged: bool) -> None:
    t = case.tiled()
    held = residency(t, FILLS) if paged else None
    assert "mosaic_gpu" in lower(decode_mosaic_gpu.decode, t, held, jnp.int32(0))
