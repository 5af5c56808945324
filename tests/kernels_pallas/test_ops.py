"""The public ops: which implementation runs, and what they refuse."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import codecjax
import kernels_pallas
from codecjax.errors import UserError
from kernels_pallas import arguments
from kernels_pallas.arg_specs import activations
from kernels_pallas.implementations import MOSAIC_GPU, XLA
from tests.kernels_pallas.cases import CASES, FILLS, HITS, Case, bits, residency

on_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="says what happens where there is no GPU"
)


@on_cpu
def test_asking_for_mosaic_gpu_without_a_gpu_says_why() -> None:
    t = CASES[0].tiled()
    with pytest.raises(UserError, match="'mosaic_gpu' cannot run here: it needs an NVIDIA Hopper"):
        kernels_pallas.decode(t, implementation=MOSAIC_GPU)
    with pytest.raises(UserError, match="cannot run here"):
        codecjax.matmul(activations(1, 512, 0), t, implementation=MOSAIC_GPU)
    assert kernels_pallas.resolve(None) == XLA


def test_a_codec_without_a_kernel_is_refused_and_never_decoded_by_another_implementation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The package has a function of that name.
    module = importlib.import_module("kernels_pallas.implementations")
    monkeypatch.setattr(module, "_mosaic_gpu_obstacle", lambda: None)
    monkeypatch.setattr(arguments, "_WITH_KERNELS", ("bf16",))
    t = CASES[0].tiled()
    held = residency(t, FILLS)
    for implementation in (MOSAIC_GPU, None):
        sentence = "'mosaic_gpu' has no kernel for codec 'window': ask for implementation 'xla'"
        with pytest.raises(UserError, match=sentence):
            kernels_pallas.decode(t, implementation=implementation)
        with pytest.raises(UserError, match=sentence):
            kernels_pallas.fill(t, held, 3, implementation=implementation)
        with pytest.raises(UserError, match=sentence):
            codecjax.matmul(activations(1, t.shape[1], 0), t, implementation=implementation)


def test_unknown_implementation_is_named() -> None:
    with pytest.raises(UserError, match="unknown implementation 'cuda'"):
        kernels_pallas.decode(CASES[0].tiled(), implementation="cuda")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_public_matmul_reads_pages(case: Case) -> None:
    t, w, x = case.tiled(), case.weight(), activations(2, case.shape[1], seed=3)
    y = codecjax.matmul(x, t, implementation=XLA)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)
    assert y.dtype == jnp.float32
    if case.codec == "bf16":
        return
    _, filled = kernels_pallas.decode(t, residency(t, FILLS), 3, implementation=XLA)
    assert filled is not None
    table = np.full(t.tiles, -1, np.int32)
    table[: len(HITS)] = HITS
    again = codecjax.matmul(x, t, filled.pages, table, implementation=XLA)
    chex.assert_trees_all_equal(again, y)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_public_decode_is_exact(case: Case) -> None:
    decoded = codecjax.decode(case.tiled(), implementation=XLA)
    chex.assert_trees_all_equal(bits(decoded), bits(case.weight()))


def test_shapes_that_do_not_fit_are_named() -> None:
    t = CASES[0].tiled()
    with pytest.raises(UserError, match=r"x of shape \(2, 100\)"):
        codecjax.matmul(jnp.zeros((2, 100)), t)
    with pytest.raises(UserError, match="go together"):
        codecjax.matmul(jnp.zeros((2, 512)), t, pages=jnp.zeros((1, 256, 256), jnp.bfloat16))
    with pytest.raises(UserError, match="page_table has shape"):
        codecjax.matmul(
            jnp.zeros((2, 512)), t, jnp.zeros((1, 256, 256), jnp.bfloat16), np.zeros(7, np.int32)
        )
    with pytest.raises(UserError, match="cannot hold tiles"):
        codecjax.matmul(
            jnp.zeros((2, 512)), t, jnp.zeros((1, 64, 128), jnp.bfloat16), np.zeros(2, np.int32)
        )
