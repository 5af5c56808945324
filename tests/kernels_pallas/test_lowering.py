"""The kernels are lowered for CUDA, which needs no GPU and catches what the interpreter accepts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import decode_mosaic_gpu, matmul_mosaic_gpu
from tests.kernels_pallas.cases import CASES, FILLS, Case, residency


def lower(function: Callable[..., Any], *arguments: Any) -> str:
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return str(lowered.as_text())


@pytest.mark.parametrize("paged", [False, True], ids=["unpaged", "paged"])
@pytest.mark.parametrize("n", [1, 16, 64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matmul(case: Case, n: int, paged: bool) -> None:
    t = case.tiled()
    text = lower(
        matmul_mosaic_gpu.matmul,
        jnp.zeros((n, case.shape[1]), jnp.bfloat16),
        t,
        residency(t, FILLS) if paged else None,
        jnp.int32(0),
    )
    assert "mosaic_gpu" in text


@pytest.mark.parametrize("paged", [False, True], ids=["unpaged", "paged"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.codec != "bf16"], ids=lambda case: case.name
)
def test_decode(case: Case, paged: bool) -> None:
    t = case.tiled()
    held = residency(t, FILLS) if paged else None
    assert "mosaic_gpu" in lower(decode_mosaic_gpu.decode, t, held, jnp.int32(0))
