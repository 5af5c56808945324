"""The kernels compiled and run on a GPU: the same cases, and the shapes of real models."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from codecjax.codecs import encode, pooled
from codecjax.codecs.window_rows import ready_for_rows
from codecjax.io.checksums import tile_checksums
from codecjax.tiles import DECODE, Residency, fill_entry, units_per_tile
from kernels_pallas import matmul_mosaic_gpu, predicted_tiles
from kernels_pallas.arg_specs import ALL, BY_NAME, MatrixSpec, activations, gaussian_weight
from kernels_pallas.implementations import MOSAIC_GPU, XLA
from kernels_pallas.inputs import Gated, Made, Mixed, Normed, value_of
from kernels_pallas.more_rows_mosaic_gpu import MoreRowsConfig
from tests.kernels_pallas.cases import (
    CASES,
    FILLS,
    FIRST_TILE,
    HITS,
    TOGETHER,
    Case,
    assert_counted,
    assert_page_holds,
    bits,
    residency,
    tile_of,
)
from tests.kernels_pallas.test_attention import CASES as ATTENTION
from tests.kernels_pallas.test_attention import arguments as attention_arguments
from tests.kernels_pallas.test_inputs import expected, made

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _gpu() -> None:
    assert kernels_pallas.implementations()[MOSAIC_GPU] is None


# One number of rows of x for each of the kernels that multiply.
rows = pytest.mark.parametrize("n", [3, 9], ids=["few rows", "more rows"])


@pytest.mark.parametrize("width", [8, 11, 16])
@pytest.mark.parametrize("n", [1, 3000])
def test_rows_looked_up(n: int, width: int) -> None:
    w = gaussian_weight(1000, 2048, seed=1).at[:300, :256].set(2.0**-100)
    t = ready_for_rows(encode(w, width=width))
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 1000, n), jnp.int32)
    for implementation in (MOSAIC_GPU, XLA):
        for dtype in ("bfloat16", "float32"):
            found = kernels_pallas.lookup(t, rows, dtype, implementation=implementation)
            chex.assert_trees_all_equal(bits(found.astype(jnp.bfloat16)), bits(w[rows]))


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_real_shapes(spec: MatrixSpec) -> None:
    """Bit-exact decode; products within float32 rounding of float64, equal for every codec."""
    w = gaussian_weight(spec.out, spec.k, seed=1)
    t, dense, coded = (encode(w, codec=codec) for codec in ("window", "bf16", "rans"))
    for each in (t, coded):
        decoded, _ = kernels_pallas.decode(each, implementation=MOSAIC_GPU)
        chex.assert_trees_all_equal(bits(decoded), bits(w))
    wide = np.asarray(w, np.float32).astype(np.float64)
    for n in (1, 5, 12):
        x = activations(n, spec.k, seed=2)
        y, _ = kernels_pallas.matmul(x, t, implementation=MOSAIC_GPU)
        exact = np.asarray(x, np.float64) @ wide.T
        assert np.linalg.norm(np.asarray(y) - exact) < 1e-5 * np.linalg.norm(exact)
        for each in (dense, coded):
            same, _ = kernels_pallas.matmul(x, each, implementation=MOSAIC_GPU)
            chex.assert_trees_all_equal(y, same)


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("int8_rans", {}),
        ("int8_rans", {"prediction": "best", "scale_bits": 32}),
        ("ecsq", {"bits_per_weight": 2.5}),
        ("ecsq", {"bits_per_weight": 4.0}),
        ("ecsq", {"bits_per_weight": 8.0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["tinyllama.query", "odd.head"])
def test_lossy_codecs_decode_as_the_reference_does(
    name: str, codec: str, options: dict[str, Any]
) -> None:
    spec = BY_NAME[name]
    t = encode(gaussian_weight(spec.out, spec.k, seed=1), codec=codec, **options)
    decoded, _ = kernels_pallas.decode(t, implementation=MOSAIC_GPU)
    expected, _ = kernels_pallas.decode(t, implementation=XLA)
    chex.assert_trees_all_equal(bits(decoded), bits(expected))
    dense = encode(expected, codec="bf16")
    for n in (1, 12):
        x = activations(n, spec.k, seed=2)
        products = [
            kernels_pallas.matmul(x, each, implementation=MOSAIC_GPU)[0] for each in (t, dense)
        ]
        chex.assert_trees_all_equal(*products)


@pytest.mark.parametrize("codec", ["ecsq", "int8_rans"])
def test_pooled_matrices_are_decoded_as_the_reference_does(codec: str) -> None:
    apart = [encode(gaussian_weight(512, 512, seed), codec=codec) for seed in (1, 2, 3)]
    for t in pooled(codec, apart):
        decoded, _ = kernels_pallas.decode(t, implementation=MOSAIC_GPU)
        expected, _ = kernels_pallas.decode(t, implementation=XLA)
        chex.assert_trees_all_equal(bits(decoded), bits(expected))


@pytest.mark.parametrize("n", [1, 8, 16, 33, 64, 200])
def test_batches(n: int) -> None:
    case = CASES[3]
    x = activations(n, case.shape[1], seed=n)
    y, _ = kernels_pallas.matmul(x, case.tiled(), implementation=MOSAIC_GPU)
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize("codec", ["window", "bf16"])
@pytest.mark.parametrize("n", [100, 256, 300, 1000])
def test_rows_of_units_that_share_x(codec: str, n: int) -> None:
    """Five rows of units, of which a CTA has two."""
    w, x = gaussian_weight(300, 1000, seed=1), activations(n, 1000, seed=2)
    t = encode(w, codec=codec)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    for config in (MoreRowsConfig(1, 2, 2), MoreRowsConfig(2, 2, 1), MoreRowsConfig(1, 1, 4)):
        (y,), _ = matmul_mosaic_gpu.matmul(x, (t,), None, jnp.int32(0), config=config)
        assert np.linalg.norm(np.asarray(y) - exact) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize("codec", ["window", "rans"])
@pytest.mark.parametrize("n", [300, 2048])
def test_many_rows_have_the_same_product_however_stored(codec: str, n: int) -> None:
    w, x = gaussian_weight(512, 1024, seed=1), activations(n, 1024, seed=2)
    t = encode(w, codec=codec)
    expected, _ = kernels_pallas.matmul(x, encode(w, codec="bf16"), implementation=MOSAIC_GPU)
    y, _ = kernels_pallas.matmul(x, t, implementation=MOSAIC_GPU)
    chex.assert_trees_all_equal(y, expected)
    paged, _ = kernels_pallas.matmul(
        x, t, residency(t, FILLS), FIRST_TILE, implementation=MOSAIC_GPU
    )
    chex.assert_trees_all_equal(paged, expected)


@pytest.mark.parametrize("splits", [2, 4, 8])
@pytest.mark.parametrize("n", [16, 33, 72, 200])
def test_sums_that_cannot_be_dealt_evenly(n: int, splits: int) -> None:
    """A cluster's CTAs add up as many registers each, or one less."""
    w, x = gaussian_weight(300, 2048, seed=1), activations(n, 2048, seed=2)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    config = MoreRowsConfig(splits, 2)
    for codec in ("window", "bf16"):
        matrices = (encode(w, codec=codec),)
        (y,), _ = matmul_mosaic_gpu.matmul(x, matrices, None, jnp.int32(0), config=config)
        assert np.linalg.norm(np.asarray(y) - exact) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("kind", "n", "k"),
    [
        *((kind, *case) for kind in (Normed, Gated) for case in ((1, 2048), (3, 700), (8, 512))),
        *((Mixed, 1, k) for k in (192, 2048)),
    ],
)
def test_x_that_the_kernel_makes(kind: type[Made], n: int, k: int) -> None:
    w, x = gaussian_weight(200, k, seed=4), made(kind, n, k)
    added = activations(n, 200, seed=5).astype(jnp.float32)
    t, dense = encode(w), encode(w, codec="bf16")
    (y,), (same,) = (
        kernels_pallas.matmul_all(
            x, (each,), added=added, following=(t, dense), implementation=MOSAIC_GPU
        )[0]
        for each in (t, dense)
    )
    chex.assert_trees_all_equal(y, same)
    product = expected(x) @ np.asarray(w, np.float64).T
    error = np.asarray(y, np.float64) - np.asarray(added, np.float64) - product
    assert np.linalg.norm(error) < 2**-8 * np.linalg.norm(product)


@pytest.mark.parametrize(("heads", "kv_heads", "capacity", "head_dim", "position"), ATTENTION)
def test_attention(heads: int, kv_heads: int, capacity: int, head_dim: int, position: int) -> None:
    given = attention_arguments(heads, kv_heads, capacity, head_dim, position)
    mixed, after = jax.jit(kernels_pallas.attend)(*given)
    expected_mixed, expected_after = kernels_pallas.attend(*given, interpret=True)
    # Multiplications and additions that are fused turn heads to other neighbours in bf16.
    tolerance = {"rtol": 2**-6, "atol": 1e-2}
    pairs = [(value_of(mixed), value_of(expected_mixed))]
    for new, wanted in zip(after, expected_after, strict=True):
        pairs.append((new[:, position], wanted[:, position]))
        rest = jnp.delete(new, position, axis=1), jnp.delete(wanted, position, axis=1)
        chex.assert_trees_all_equal(*map(bits, rest))
    for found, wanted in pairs:
        np.testing.assert_allclose(
            np.asarray(found, np.float64), np.asarray(wanted, np.float64), **tolerance
        )


compressed = pytest.mark.parametrize(
    "case", [case for case in CASES if case.codec != "bf16"], ids=lambda case: case.name
)


@compressed
def test_fill_decodes_into_pages_and_nothing_else(case: Case) -> None:
    t = case.tiled()
    after = kernels_pallas.fill(t, residency(t, FILLS), FIRST_TILE, implementation=MOSAIC_GPU)
    assert after.pages is not None
    assert_page_holds(after.pages[4], case.weight(), t, 1)
    assert (jnp.delete(after.pages, 4, axis=0) == 7.0).all()
    mine = after.decoded[FIRST_TILE : FIRST_TILE + t.tiles]
    np.testing.assert_array_equal(mine, np.arange(t.tiles)[:, None] == np.ones_like(mine))


@rows
@compressed
def test_pages_are_filled_and_read(case: Case, n: int) -> None:
    t, x = case.tiled(), activations(n, case.shape[1], seed=1)
    alone, _ = kernels_pallas.matmul(x, t, implementation=MOSAIC_GPU)
    filled, after = kernels_pallas.matmul(
        x, t, residency(t, FILLS), FIRST_TILE, implementation=MOSAIC_GPU
    )
    chex.assert_trees_all_equal(filled, alone)
    assert after is not None
    assert_page_holds(after.pages[4], case.weight(), t, 1)
    assert (jnp.delete(after.pages, 4, axis=0) == 7.0).all()
    assert_counted(after.decoded, (t,))
    resident = Residency(after.pages, residency(t, HITS).page_table, after.decoded)
    read, hit = kernels_pallas.matmul(x, t, resident, FIRST_TILE, implementation=MOSAIC_GPU)
    chex.assert_trees_all_equal(read, alone)
    assert hit is not None
    assert_counted(hit.decoded, (t,), hit=1)


@rows
@pytest.mark.parametrize("share", [False, True], ids=["arrays apart", "arrays shared"])
def test_matrices_that_share_x(share: bool, n: int) -> None:
    """One launch gives each matrix's own product, and counts and pages each one's tiles."""
    matrices, x = tuple(case.tiled() for case in TOGETHER), activations(n, 512, seed=1)
    matrices = pooled("window", matrices) if share else matrices
    for case, t in zip(TOGETHER, matrices, strict=True):
        w, _ = kernels_pallas.decode(t, implementation=MOSAIC_GPU)
        chex.assert_trees_all_equal(bits(w), bits(case.weight()))
    dense = [dataclasses.replace(case, codec="bf16").tiled() for case in TOGETHER]
    products, _ = kernels_pallas.matmul_all(x, matrices, implementation=MOSAIC_GPU)
    baseline, _ = kernels_pallas.matmul_all(x, dense, implementation=MOSAIC_GPU)
    chex.assert_trees_all_equal(products, baseline)
    for case, y in zip(TOGETHER, products, strict=True):
        exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
        assert np.linalg.norm(np.asarray(y) - exact) < 1e-5 * np.linalg.norm(exact)
    tiles = sum(t.tiles for t in matrices)
    for tile in range(tiles):
        entries = [DECODE] * tiles
        entries[tile] = fill_entry(4)
        held = residency(matrices[0], entries, tiles)
        filled, after = kernels_pallas.matmul_all(
            x, matrices, held, FIRST_TILE, implementation=MOSAIC_GPU
        )
        chex.assert_trees_all_equal(filled, products)
        assert after is not None
        entries[tile] = 4
        table = residency(matrices[0], entries, tiles).page_table
        read, hit = kernels_pallas.matmul_all(
            x,
            matrices,
            Residency(after.pages, table, held.decoded),
            FIRST_TILE,
            implementation=MOSAIC_GPU,
        )
        chex.assert_trees_all_equal(read, products)
        assert hit is not None
        assert_counted(hit.decoded, matrices, hit=tile)


def test_random_plans_compile_once_and_count_their_work() -> None:
    t = encode(gaussian_weight(1024, 1024, seed=3), codec="window")
    x, random = activations(1, 1024, seed=4), np.random.default_rng(5)
    alone, _ = kernels_pallas.matmul(x, t, implementation=MOSAIC_GPU)
    pages = jnp.stack([tile_of(gaussian_weight(1024, 1024, seed=3), t, i) for i in range(t.tiles)])

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(x: jax.Array, held: Residency) -> tuple[jax.Array, jax.Array]:
        y, after = kernels_pallas.matmul(x, t, held, implementation=MOSAIC_GPU)
        assert after is not None
        return y, after.decoded.sum()

    for _ in range(50):
        table = np.where(random.random(t.tiles) < 0.5, np.arange(t.tiles), -1).astype(np.int32)
        decoded = jnp.zeros((t.tiles, units_per_tile(t.tile)), jnp.int32)
        y, count = step(x, Residency(pages, jnp.asarray(table), decoded))
        chex.assert_trees_all_equal(y, alone)
        assert int(count) == int((table < 0).sum()) * units_per_tile(t.tile)


@pytest.mark.parametrize(
    "name",
    [
        "verbatim tile",
        "rans, verbatim tile",
        "int8_rans",
        "int8_rans, predicted, float32 scales",
        "ecsq, an index a symbol",
        "ecsq, two indices a symbol",
        "ecsq, two symbols an index",
    ],
)
def test_damage_hangs_and_crashes_nothing_and_checksums_find_it(name: str) -> None:
    """1,000 mutations of one 16-bit word each, all arrays of the matrix in turn."""
    (case,) = (case for case in CASES if case.name == name)
    t = case.tiled()
    arrays = {name: np.asarray(array) for name, array in t.arrays.items()}
    right, expected = bits(case.weight()), np.array(tile_checksums(t, arrays))
    # The kernel goes by the option where that says that no tile is predicted.
    read = [name for name in arrays if name != "prediction" or predicted_tiles.may_occur(t)]
    random, shown = np.random.default_rng(0), dict.fromkeys(read, 0)

    def damaged(array: np.ndarray) -> np.ndarray:
        words = array.copy().view(np.uint16).reshape(-1)
        words[random.integers(words.size)] ^= 1 << random.integers(16) | 1 << random.integers(16)
        return words.view(array.dtype).reshape(array.shape)

    for number in range(1000):
        name = read[number % len(read)]
        changed = arrays | {name: damaged(arrays[name])}
        on_device = {name: jnp.asarray(array) for name, array in changed.items()}
        w, _ = kernels_pallas.decode(
            dataclasses.replace(t, arrays=on_device), implementation=MOSAIC_GPU
        )
        found = np.array(tile_checksums(t, changed))
        for tile in range(t.tiles):
            if not np.array_equal(tile_of(bits(w), t, tile), tile_of(right, t, tile)):
                shown[name] += 1
                assert found[tile] != expected[tile], (number, name, tile)
    assert all(shown.values()), shown
