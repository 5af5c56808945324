"""Small programs that run every kernel once, for compute-sanitizer, see test_sanitizer.

Only the kernels run on the GPU: the tool slows down, and at times crashes, what XLA compiles to
make matrices and to compare results.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

import kernels_pallas
from codecjax.codecs import encode
from kernels_pallas.arg_specs import activations, gaussian_weight
from kernels_pallas.implementations import MOSAIC_GPU
from kernels_pallas.inputs import Gated, Made, Mixed, Normed
from tests.kernels_pallas.cases import (
    CASES,
    FILLS,
    FIRST_TILE,
    HITS,
    Case,
    assert_page_holds,
    bits,
    residency,
)
from tests.kernels_pallas.test_attention import CASES as ATTENTION
from tests.kernels_pallas.test_attention import arguments as attention_arguments
from tests.kernels_pallas.test_inputs import made

BY_NAME = {case.name: case for case in CASES}


def on_gpu(tree: Any) -> Any:
    return jax.device_put(tree, jax.devices("cuda")[0])


def multiply(case: Case, rows: Sequence[int]) -> None:
    """Without pages, filling one, and reading one."""
    t = case.tiled()
    here, w = on_gpu(t), np.asarray(case.weight(), np.float64)
    for n in rows:
        x = activations(n, case.shape[1], seed=n)
        alone, _ = kernels_pallas.matmul(on_gpu(x), here, implementation=MOSAIC_GPU)
        exact = np.asarray(x, np.float64) @ w.T
        assert np.linalg.norm(np.asarray(alone) - exact) < 1e-5 * np.linalg.norm(exact)
        for entries in (FILLS, HITS):
            held, first = on_gpu((residency(t, entries), jnp.int32(FIRST_TILE)))
            y, after = kernels_pallas.matmul(
                on_gpu(x), here, held, first, implementation=MOSAIC_GPU
            )
            jax.block_until_ready((y, after))
            if entries is FILLS:
                chex.assert_trees_all_equal(np.asarray(y), np.asarray(alone))


def multiply_made(case: Case, kind: type[Made]) -> None:
    """By x that the kernel makes, with something added."""
    t = on_gpu(case.tiled())
    for n in (1,) if kind is Mixed else (1, 3):
        x, added = made(kind, n, case.shape[1]), jnp.ones((n, case.shape[0]))
        (y,), _ = kernels_pallas.matmul_all(
            on_gpu(x), (t,), added=on_gpu(added), following=(t,), implementation=MOSAIC_GPU
        )
        assert np.isfinite(np.asarray(y)).all()


def decode(case: Case) -> None:
    """To a dense matrix, and into a page."""
    t = case.tiled()
    here = on_gpu(t)
    decoded, _ = kernels_pallas.decode(here, implementation=MOSAIC_GPU)
    chex.assert_trees_all_equal(bits(decoded), bits(case.weight()))
    held, first = on_gpu((residency(t, FILLS), jnp.int32(FIRST_TILE)))
    after = kernels_pallas.fill(here, held, first, implementation=MOSAIC_GPU)
    assert after.pages is not None
    assert_page_holds(jax.device_put(after.pages[4], jax.devices("cpu")[0]), case.weight(), t, 1)


def attend() -> None:
    # The kernel is compiled for the default device.
    with jax.default_device(jax.devices("cuda")[0]):
        for case in ATTENTION:
            given = on_gpu(attention_arguments(*case.values))
            jax.block_until_ready(jax.jit(kernels_pallas.attend)(*given))


def look_up() -> None:
    w = gaussian_weight(300, 512, seed=1).at[:100, :256].set(2.0**-100)
    rows = jnp.arange(0, 300, 7)
    found = kernels_pallas.lookup(on_gpu(encode(w)), on_gpu(rows), implementation=MOSAIC_GPU)
    chex.assert_trees_all_equal(bits(found), bits(w[rows]))


def _programs() -> dict[str, Callable[[], None]]:
    programs: dict[str, Callable[[], None]] = {"attention": attend, "lookup": look_up}
    for case in CASES:
        if case.codec != "bf16":
            programs[f"decode, {case.name}"] = functools.partial(decode, case)
        for rows in ((1, 3), (16, 64), (150,), (300,)):
            # What is entropy-coded is decoded first and multiplied as the dense case is, but for
            # rans and few rows.
            if not case.is_lossy and (max(rows) < 100 or case.codec != "rans"):
                name = f"{case.name}, {' and '.join(map(str, rows))} rows"
                programs[name] = functools.partial(multiply, case, rows)
    for name in ("width 11", "width 8", "verbatim tile", "dense", "rans"):
        for kind in (Normed, Gated, Mixed):
            made_by = functools.partial(multiply_made, BY_NAME[name], kind)
            programs[f"{name}, {kind.__name__}"] = made_by
    return programs


PROGRAMS = _programs()

if __name__ == "__main__":
    jax.config.update("jax_default_device", jax.devices("cpu")[0])
    PROGRAMS[sys.argv[1]]()
