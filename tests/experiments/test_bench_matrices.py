"""The checks that come before a timing notice what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs import encode
from experiments import bench_matrices
from experiments.bench_cublas import dot
from experiments.bench_matmul import _has_dot, batches_of
from kernels_pallas.arg_specs import gaussian_weight


def test_zeros_of_either_sign_differ_and_nan_equals_itself() -> None:
    a = jnp.asarray([0.0, np.nan], jnp.bfloat16)
    assert bench_matrices.bit_equal([a], [a])
    assert not bench_matrices.bit_equal([a, a], [a, a.at[0].set(-0.0)])
    with pytest.raises(ValueError, match="2 arrays to compare with 1"):
        bench_matrices.bit_equal([a, a], [a])


def test_the_error_of_a_product_is_against_float64() -> None:
    w = gaussian_weight(300, 70, seed=0)
    reference = bench_matrices.Reference(w, 5)
    y = dot(reference.x(3), w)
    assert reference.error(y) < 1e-6
    size = float(jnp.linalg.norm(y))
    assert reference.error(y.at[2, 299].add(0.01 * size)) == pytest.approx(0.01, rel=0.01)


def test_pages_hold_the_tiles_and_zeros_beyond_the_edges() -> None:
    w = gaussian_weight(300, 520, seed=0)
    pages = bench_matrices.all_pages(w, encode(w, codec="window"))
    assert pages.shape == (2 * 3, 256, 256)
    np.testing.assert_array_equal(pages[4][:44], w[256:, 256:512])
    assert not pages[5][:, 8:].any()


def test_a_call_goes_around_all_matrices_and_keeps_a_gpu_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bench_matrices.applications(3, 10**9) == 3
    monkeypatch.setattr(bench_matrices, "backend", lambda: "gpu")
    large, small = (bench_matrices.applications(2, size) for size in (10**10, 10**6))
    assert large == 2
    assert small % 2 == 0
    assert small * bench_matrices._SHORTEST_KERNEL >= bench_matrices._CALL_SECONDS["gpu"]


def test_rotated_matrices_exceed_the_cache_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_matrices, "backend", lambda: "gpu")
    for shape in ((256, 2048), (4096, 4096), (128256, 4096)):
        copies = bench_matrices._copies(shape)
        assert copies >= 2
        assert copies * shape[0] * shape[1] * 11 / 8 >= 2 * 50 * 10**6


def test_prefill_is_measured_where_it_matters() -> None:
    assert batches_of("llama_8b.up", ()) == (1, 16, 32, 64, 128, 512, 2048, 4096)
    assert batches_of("llama_8b.head", ()) == (1, 16, 32, 64)
    assert batches_of("tinyllama.key", ()) == (1,)
    assert batches_of("tinyllama.key", (3, 5)) == (3, 5)


def test_a_product_by_xla_is_told_from_a_kernel() -> None:
    x = jnp.ones((2, 2))
    inner = jax.jit(lambda y: y @ y)
    assert _has_dot(jax.make_jaxpr(lambda y: inner(y) + 1)(x).jaxpr)
    assert not _has_dot(jax.make_jaxpr(lambda y: jax.jit(jnp.sin)(y) + 1)(x).jaxpr)
