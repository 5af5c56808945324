"""Attention of one token in the interpreter, beside the same in plain JAX; and lowered for CUDA."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

import kernels_pallas
from codecjax.errors import UserError
from kernels_pallas.implementations import MOSAIC_GPU, XLA
from kernels_pallas.inputs import value_of

# Query heads, key/value heads, capacity, size of a head, position.
CASES = [
    pytest.param(8, 2, 512, 64, 300, id="tinyllama"),
    pytest.param(4, 1, 96, 128, 0, id="first token"),
    pytest.param(2, 2, 256, 16, 255, id="last position"),
    pytest.param(24, 1, 96, 32, 50, id="many heads share a key"),
    pytest.param(4, 2, 48, 32, 20, id="one part"),
    pytest.param(4, 1, 2100, 64, 2000, id="several parts"),
    pytest.param(4, 2, 2100, 32, 5, id="parts without a position"),
]


def arguments(heads: int, kv_heads: int, capacity: int, head_dim: int, position: int):  # type: ignore
    keys = jax.random.split(jax.random.key(0), 3)
    angles = position * 0.1 * jnp.arange(1, head_dim // 2 + 1)
    shape = (kv_heads, capacity, head_dim)
    cache = tuple(jax.random.normal(key, shape, jnp.bfloat16) for key in keys[1:])
    return (
        jax.random.normal(keys[0], (heads + 2 * kv_heads, head_dim)),
        jnp.stack([jnp.cos(angles), jnp.sin(angles)]),
        cache,
        jnp.int32(position),
    )


@pytest.mark.parametrize(("heads", "kv_heads", "capacity", "head_dim", "position"), CASES)
def test_attends_and_takes_up_the_token(
    heads: int, kv_heads: int, capacity: int, head_dim: int, position: int
) -> None:
    projected, rotation, cache, at = arguments(heads, kv_heads, capacity, head_dim, position)
    mixed, after = kernels_pallas.attend(projected, rotation, cache, at, interpret=True)

    cosine, sine = rotation
    first, second = jnp.split(projected[: heads + kv_heads], 2, axis=1)
    rotated = jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=1
    ).astype(jnp.bfloat16)
    value = projected[heads + kv_heads :].astype(jnp.bfloat16)
    expected = tuple(
        old.at[:, position].set(new)
        for old, new in zip(cache, (rotated[heads:], value), strict=True)
    )
    chex.assert_trees_all_equal(after, expected)
    keys, values = (np.asarray(each, np.float64)[:, : position + 1] for each in expected)
    queries = np.asarray(rotated[:heads], np.float64).reshape(kv_heads, -1, head_dim)
    scores = np.einsum("kgd,kcd->kgc", queries, keys) / np.sqrt(head_dim)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    product = np.einsum("kgc,kcd->kgd", shares, values).reshape(heads, head_dim)
    mixed = value_of(mixed).reshape(heads, head_dim)
    assert mixed.dtype == jnp.bfloat16
    # Rounded to bf16 at the end, and nowhere before.
    np.testing.assert_allclose(np.asarray(mixed, np.float64), product, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "capacity", "head_dim", "position"), CASES)
def test_lowers_for_cuda(
    heads: int, kv_heads: int, capacity: int, head_dim: int, position: int
) -> None:
    given = arguments(heads, kv_heads, capacity, head_dim, position)
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        traced = jax.jit(kernels_pallas.attend).trace(*given)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 1


def test_heads_of_other_sizes_are_refused() -> None:
    assert kernels_pallas.attention_implementation(MOSAIC_GPU, 80) == XLA
    with pytest.raises(UserError, match="cannot have heads of 80"):
        kernels_pallas.attend(*arguments(2, 1, 64, 80, 3), interpret=True)
