"""Rows looked up, against the rows that were encoded."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import kernels_pallas
from codecjax.codecs import encode, pooled, window_rows
from codecjax.codecs.window_rows import ready_for_rows
from codecjax.errors import UserError
from codecjax.tiles import TiledMatrix
from kernels_pallas import lookup_mosaic_gpu
from kernels_pallas.arg_specs import gaussian_weight


def to_bits(w: object) -> np.ndarray:
    return np.asarray(w).view(np.uint16)


def from_bits(bits: np.ndarray) -> np.ndarray:
    return np.asarray(bits, np.uint16).view(ml_dtypes.bfloat16)


def gaussian(out: int, k: int, seed: int = 0) -> np.ndarray:
    return np.asarray(gaussian_weight(out, k, seed))


def noise(out: int, k: int) -> np.ndarray:
    return from_bits(np.random.default_rng(3).integers(0, 2**16, (out, k)))


def every_pattern() -> np.ndarray:
    """Each among ordinary weights, most of them escapes."""
    bits = to_bits(gaussian(4096, 1024)).copy()
    bits[::16, ::4] = np.arange(2**16).reshape(256, 256)
    return from_bits(bits)


def one_lane_full() -> np.ndarray:
    """All 64 weights of one lane are escapes, and in the record those of others follow."""
    w = np.ones((64, 128), ml_dtypes.bfloat16)
    lane = [(row, 8 * kt + column) for kt in range(16) for row in (1, 9) for column in (2, 3)]
    others = [(row, column) for row in range(32) for column in range(0, 128, 16)]
    others = [place for place in others if place not in lane]
    for number, place in enumerate(lane + others[:150]):
        w[place] = 2.0 ** (number % 100 + 20)
    return w


def one_wild_tile() -> np.ndarray:
    return np.block([[gaussian(256, 256), noise(256, 256)], [gaussian(256, 512, 1)]])


# Whether it is stored dense, and which arrays it has besides: tells that the case is what it says.
CASES: dict[str, tuple[Callable[[], np.ndarray], dict[str, object], set[str]]] = {
    "width 8": (lambda: gaussian(256, 512), {"width": 8}, set()),
    "width 11": (lambda: gaussian(256, 512), {"width": 11}, set()),
    "width 16": (lambda: gaussian(256, 512), {"width": 16}, set()),
    "ragged": (lambda: gaussian(500, 500), {"width": 8}, set()),
    "small tiles": (lambda: gaussian(120, 384), {"width": 8, "tile": (64, 128)}, set()),
    "verbatim tile": (one_wild_tile, {"width": 8}, {"slot", "verbatim"}),
    "full lane": (one_lane_full, {"width": 8, "tile": (64, 128)}, set()),
    "every pattern, width 8": (every_pattern, {"width": 8}, {"slot", "verbatim"}),
    "every pattern, width 11": (every_pattern, {"width": 11}, set()),
    "every pattern, width 16": (every_pattern, {"width": 16}, set()),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_that_were_encoded(name: str) -> None:
    weight, options, more = CASES[name]
    w = weight()
    t = encode(w, **options)
    assert set(t.arrays) == {"words", "escapes", "base"} | more
    ready = ready_for_rows(t)
    assert set(ready.arrays) == set(t.arrays) | {"lane_escapes"}
    rows = np.random.default_rng(0).permutation(len(w)).astype(np.int32)
    for each in (ready, t) if name in ("width 8", "full lane") else (ready,):
        np.testing.assert_array_equal(
            to_bits(kernels_pallas.lookup(each, jnp.asarray(rows))), to_bits(w)[rows]
        )


# Ordinary weights of each width are among those of every pattern.
READ_BY_KERNEL = [name for name in CASES if not name.startswith("width")]


@pytest.mark.parametrize("name", READ_BY_KERNEL)
def test_the_kernel_reads_the_rows_that_were_encoded(name: str) -> None:
    """In the interpreter, and lowered for CUDA."""
    weight, options, _ = CASES[name]
    w = weight()
    t = encode(w, **options)
    rows = np.random.default_rng(0).permutation(len(w)).astype(np.int32)[:5]
    found = lookup_mosaic_gpu.read_rows(t, jnp.asarray(rows), interpret=True)
    np.testing.assert_array_equal(to_bits(found), to_bits(w)[rows])
    for dtype in ("bfloat16", "float32"):
        read = jax.jit(functools.partial(lookup_mosaic_gpu.read_rows, dtype=dtype))
        text = read.trace(t, jnp.asarray(rows)).lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("custom_call @mosaic_gpu") == 1


@pytest.mark.parametrize("name", ["ragged", "verbatim tile"])
def test_the_kernel_reads_rows_as_float32(name: str) -> None:
    weight, options, _ = CASES[name]
    w = weight()
    rows = jnp.array([7, 0, len(w) - 1], jnp.int32)
    found = lookup_mosaic_gpu.read_rows(encode(w, **options), rows, "float32", interpret=True)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(found), w[np.asarray(rows)].astype(np.float32))


def test_the_kernel_reads_rows_of_matrices_in_a_pool() -> None:
    weights = [gaussian(256, 256), one_wild_tile(), gaussian(500, 256, 2)]
    alone = [encode(w, width=8) for w in weights]
    for t, w in zip(pooled("window", alone), weights, strict=True):
        rows = jnp.arange(0, len(w), 101, dtype=jnp.int32)
        found = lookup_mosaic_gpu.read_rows(t, rows, interpret=True)
        np.testing.assert_array_equal(to_bits(found), to_bits(w)[np.asarray(rows)])


def test_the_kernel_refuses_too_many_tiles_in_a_row() -> None:
    t = encode(gaussian(64, 129 * 128), tile=(64, 128))
    with pytest.raises(UserError, match="more than 128 tiles in a row: encode it with wider tiles"):
        lookup_mosaic_gpu.read_rows(t, jnp.zeros(1, jnp.int32), interpret=True)


@pytest.mark.parametrize(
    ("w", "codec"),
    [(noise(256, 256), "window"), (gaussian(1, 300), "window"), (noise(5, 7), "bf16")],
)
def test_rows_of_dense_matrices(w: np.ndarray, codec: str) -> None:
    t = ready_for_rows(encode(w, codec=codec))
    assert t.is_dense
    rows = np.arange(len(w))[::-1].astype(np.int32)
    np.testing.assert_array_equal(to_bits(kernels_pallas.lookup(t, rows)), to_bits(w)[rows])


def test_rows_of_matrices_in_a_pool() -> None:
    weights = [gaussian(256, 256), one_wild_tile(), gaussian(500, 256, 2)]
    # The longest record of all is that of the matrix in the middle.
    weights[1][300, 0:60] = 2.0**-60
    alone = [encode(w, width=8) for w in weights]
    lengths = [t.arrays["escapes"].shape[-1] for t in alone]
    for t, w in zip(pooled("window", [ready_for_rows(t) for t in alone]), weights, strict=True):
        assert t.place is not None
        assert t.arrays["escapes"].shape[-1] == max(lengths)
        rows = np.arange(len(w), dtype=np.int32)
        np.testing.assert_array_equal(to_bits(kernels_pallas.lookup(t, rows)), to_bits(w))


@pytest.mark.parametrize("codec", ["window", "bf16"])
def test_rows_out_of_range_are_those_of_plain_indexing(codec: str) -> None:
    w = gaussian(256, 512)
    rows = np.array([0, 255, 256, 2**31 - 1, -1, -256, -257, -(2**31)], np.int32)
    found = kernels_pallas.lookup(ready_for_rows(encode(w, codec=codec)), rows)
    np.testing.assert_array_equal(to_bits(found), to_bits(jnp.asarray(w)[rows]))
    if codec == "window":
        read = lookup_mosaic_gpu.read_rows(encode(w), jnp.asarray(rows), interpret=True)
        np.testing.assert_array_equal(to_bits(read), to_bits(found))


def test_many_rows_are_looked_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian(256, 512)
    t = ready_for_rows(encode(w, width=8))
    rows = np.random.default_rng(0).integers(0, 256, 10).astype(np.int32)
    # Four rows at a time: the last part begins within the one before it.
    monkeypatch.setattr(window_rows, "_WEIGHTS_AT_ONCE", 4 * 512)
    found = jax.jit(window_rows.read_rows)(t, rows)
    np.testing.assert_array_equal(to_bits(found), to_bits(w)[rows])


def temporaries(t: TiledMatrix, rows: int) -> int:
    compiled = kernels_pallas.lookup.lower(t, jax.ShapeDtypeStruct((rows,), jnp.int32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_temporaries_are_bounded_and_few_for_one_row() -> None:
    t = ready_for_rows(encode(gaussian(256, 4096), width=8))
    described = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), t)
    # Fewer than a decoded tile's for one row, and no more for many rows than for a part of them.
    assert temporaries(described, 1) < 2 * 256 * 4096 / 8
    most = temporaries(described, 1 << 12)
    assert most < 40 * window_rows._WEIGHTS_AT_ONCE
    assert temporaries(described, 1 << 14) < 1.05 * most


def test_damaged_records_change_exponents_only() -> None:
    w = gaussian(256, 512)
    t = ready_for_rows(encode(w, width=8))
    rows = np.arange(256, dtype=np.int32)
    random = np.random.default_rng(0)
    for name in ("escapes", "lane_escapes"):
        for bits in (0, -1, None):
            array = t.arrays[name]
            if bits is None:
                damaged = random.integers(0, 2**8, (array.nbytes,), np.uint8).view(array.dtype)
            else:
                damaged = np.full(array.size, bits).astype(array.dtype)
            arrays = {**t.arrays, name: jnp.asarray(damaged.reshape(array.shape))}
            found = kernels_pallas.lookup(dataclasses.replace(t, arrays=arrays), rows)
            assert (to_bits(found) != to_bits(w)).any()
            np.testing.assert_array_equal(to_bits(found) & 0x807F, to_bits(w) & 0x807F)


def test_other_codecs_rows_are_refused() -> None:
    t = encode(gaussian(256, 512), codec="rans", probability_bits=10)
    with pytest.raises(UserError, match="codec 'rans' cannot be looked up: encode it in 'window'"):
        kernels_pallas.lookup(t, jnp.zeros(1, jnp.int32))
