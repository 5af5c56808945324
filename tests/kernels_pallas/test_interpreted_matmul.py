"""The Mosaic GPU matmul kernels in the Pallas interpreter: the same bits as of bf16."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs import encode, pooled
from codecjax.errors import UserError
from codecjax.tiles import DECODE, Residency, fill_entry
from kernels_pallas import matmul_mosaic_gpu, more_rows_mosaic_gpu
from kernels_pallas.arg_specs import activations, gaussian_weight
from kernels_pallas.few_rows_mosaic_gpu import FewRowsConfig
from kernels_pallas.lanes import Lanes
from kernels_pallas.more_rows_mosaic_gpu import MoreRowsConfig
from kernels_pallas.unit_stream import UnitStream
from tests.kernels_pallas.cases import (
    CASES,
    FILLS,
    FIRST_TILE,
    HITS,
    MULTIPLIED,
    PAGED,
    TOGETHER,
    Case,
    assert_counted,
    assert_page_holds,
    residency,
)

NO_TILE = jnp.int32(0)
FIRST = jnp.int32(FIRST_TILE)
FEW, MORE = 3, 9


def with_rows(cases: Sequence[Case], both: Sequence[str]) -> pytest.MarkDecorator:
    """Each case with few rows of x; some, by name, with more too, which go to another kernel."""
    return pytest.mark.parametrize(
        ("case", "n"),
        [
            pytest.param(case, n, id=f"{case.name}, {n} rows")
            for case in cases
            for n in (FEW, MORE)
            if n == FEW or case.name in both
        ],
    )


@with_rows(MULTIPLIED, ["width 11", "width 16", "verbatim tile", "no multiple of a tile", "dense"])
def test_matmul_is_right_and_the_same_whatever_the_codec(case: Case, n: int) -> None:
    x = activations(n, case.shape[1], seed=1)
    (y,), _ = matmul_mosaic_gpu.matmul(x, (case.tiled(),), None, NO_TILE, interpret=True)
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)
    dense = encode(case.weight(), codec="bf16")
    (baseline,), _ = matmul_mosaic_gpu.matmul(x, (dense,), None, NO_TILE, interpret=True)
    chex.assert_trees_all_equal(y, baseline)


@with_rows([case for case in PAGED if case in MULTIPLIED], ["width 11", "verbatim tile", "rans"])
def test_matmul_fills_a_page_and_then_reads_it(case: Case, n: int) -> None:
    t, x = case.tiled(), activations(n, case.shape[1], seed=1)
    (alone,), _ = matmul_mosaic_gpu.matmul(x, (t,), None, NO_TILE, interpret=True)
    (filled,), after = matmul_mosaic_gpu.matmul(x, (t,), residency(t, FILLS), FIRST, interpret=True)
    chex.assert_trees_all_equal(filled, alone)
    assert after is not None
    assert after.pages is not None
    assert_page_holds(after.pages[4], case.weight(), t, 1)
    untouched = jnp.delete(after.pages, 4, axis=0)
    assert (untouched == 7.0).all()
    assert_counted(after.decoded, (t,))

    resident = residency(t, HITS)
    # What is in the page is what gets multiplied: nothing decodes behind the cache's back.
    read_back = Residency(after.pages, resident.page_table, after.decoded)
    (read,), hit = matmul_mosaic_gpu.matmul(x, (t,), read_back, FIRST, interpret=True)
    chex.assert_trees_all_equal(read, alone)
    (poisoned,), _ = matmul_mosaic_gpu.matmul(x, (t,), resident, FIRST, interpret=True)
    assert not np.array_equal(poisoned, alone)
    assert hit is not None
    assert_counted(hit.decoded, (t,), hit=1)


@pytest.mark.parametrize(
    "config", [MoreRowsConfig(splits=2, stages=2), FewRowsConfig(1)], ids=["clusters", "warps"]
)
def test_matrices_that_share_x_give_what_each_gives_alone(config: matmul_mosaic_gpu.Config) -> None:
    """One launch for all, whether or not they share arrays, and one for each of a mixture."""
    matrices, x = tuple(case.tiled() for case in TOGETHER), activations(3, 512, seed=1)
    options: dict[str, Any] = {"config": config, "interpret": True}
    mixed = (matrices[0], encode(TOGETHER[1].weight(), "bf16", TOGETHER[1].tile), matrices[2])
    apart, _ = matmul_mosaic_gpu.matmul(x, mixed, None, NO_TILE, **options)
    assert [y.shape for y in apart] == [(3, case.shape[0]) for case in TOGETHER]
    for together in (matrices, pooled("window", matrices)):
        products, _ = matmul_mosaic_gpu.matmul(x, together, None, NO_TILE, **options)
        chex.assert_trees_all_equal(products, apart)


@pytest.mark.parametrize(
    ("tile", "share", "n"),
    [(1, True, FEW), (3, True, MORE), (7, False, FEW)],
    ids=["first, arrays shared", "second, arrays shared", "third, arrays apart"],
)
def test_a_page_serves_whichever_matrix_its_tile_is_of(tile: int, share: bool, n: int) -> None:
    matrices, x = tuple(case.tiled() for case in TOGETHER), activations(n, 512, seed=1)
    matrices = pooled("window", matrices) if share else matrices
    tiles = sum(t.tiles for t in matrices)
    entries = [DECODE] * tiles
    entries[tile] = fill_entry(4)
    alone, _ = matmul_mosaic_gpu.matmul(x, matrices, None, NO_TILE, interpret=True)
    held = residency(matrices[0], entries, tiles)
    filled, after = matmul_mosaic_gpu.matmul(x, matrices, held, FIRST, interpret=True)
    chex.assert_trees_all_equal(filled, alone)
    assert after is not None
    assert after.pages is not None
    owner = 0 if tile < 2 else 1 if tile < 6 else 2
    local = tile - (0, 2, 6)[owner]
    assert_page_holds(after.pages[4], TOGETHER[owner].weight(), matrices[owner], local)

    entries[tile] = 4
    table = residency(matrices[0], entries, tiles).page_table
    resident = Residency(after.pages, table, held.decoded)
    read, hit = matmul_mosaic_gpu.matmul(x, matrices, resident, FIRST, interpret=True)
    chex.assert_trees_all_equal(read, alone)
    assert hit is not None
    assert_counted(hit.decoded, matrices, hit=tile)


@pytest.mark.parametrize("n", [1, 8, 9, 33, 64])
def test_matmul_multiplies_any_number_of_rows(n: int) -> None:
    case = CASES[0]
    x = activations(n, case.shape[1], seed=n)
    (y,), _ = matmul_mosaic_gpu.matmul(x, (case.tiled(),), None, NO_TILE, interpret=True)
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert y.shape == exact.shape
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("codec", "out", "n", "config"),
    [
        ("window", 128, 65, MoreRowsConfig(splits=2, stages=2, down=2)),
        ("window", 200, 40, MoreRowsConfig(splits=1, stages=2, down=2)),
        ("bf16", 192, 200, MoreRowsConfig(splits=2, stages=1, down=4)),
    ],
    ids=["two rows", "a row too few", "three rows of four"],
)
def test_rows_of_units_that_share_x_give_the_sum(
    codec: str, out: int, n: int, config: MoreRowsConfig
) -> None:
    w, x = gaussian_weight(out, 512, seed=1), activations(n, 512, seed=2)
    (y,), _ = matmul_mosaic_gpu.matmul(
        x, (encode(w, codec=codec),), None, NO_TILE, config=config, interpret=True
    )
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)


def test_many_rows_are_multiplied_part_by_part() -> None:
    case = Case("small", (64, 128), tile=(64, 128))
    t, x = encode(case.weight(), "bf16", case.tile), activations(300, 128, seed=3)
    added = activations(300, 64, seed=4).astype(jnp.float32)
    (y,), _ = matmul_mosaic_gpu.matmul(x, (t,), None, NO_TILE, added, interpret=True)
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    error = np.asarray(y, np.float64) - np.asarray(added, np.float64) - exact
    assert np.linalg.norm(error) < 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("codec", ["window", "rans"])
def test_many_rows_have_the_same_product_with_pages(codec: str) -> None:
    """Decoded before the same kernel multiplies; pages are filled, and what was decoded counted."""
    case, x = Case("small", (64, 256), codec=codec, tile=(64, 128)), activations(300, 256, seed=2)
    t, plain = case.tiled(), encode(case.weight(), "bf16", (64, 128))
    (expected,), _ = matmul_mosaic_gpu.matmul(x, (plain,), None, NO_TILE, interpret=True)
    (y,), after = matmul_mosaic_gpu.matmul(x, (t,), residency(t, FILLS), FIRST, interpret=True)
    chex.assert_trees_all_equal(y, expected)
    assert after is not None
    assert after.pages is not None
    assert_page_holds(after.pages[4], case.weight(), t, 1)
    assert_counted(after.decoded, (t,))


def test_settings_for_many_rows_fill_the_gpu() -> None:
    """Two rows of units a CTA where there are enough of them for each part of x, else slices."""
    assert matmul_mosaic_gpu.choose_config(224, 32, 512) == MoreRowsConfig(1, 2, 2)
    assert matmul_mosaic_gpu.choose_config(64, 32, 512) == MoreRowsConfig(2, 2, 1)
    assert matmul_mosaic_gpu.choose_config(64, 32, 1024) == MoreRowsConfig(1, 2, 2)


def test_buffers_fit_shared_memory_whatever_was_measured() -> None:
    """With pages a CTA needs more, and then has fewer rows of units; the slices stay."""
    t = encode(gaussian_weight(512, 512, seed=1))
    config = MoreRowsConfig(splits=2, stages=2, down=2)
    for held, down in ((None, 2), (residency(t, FILLS), 1)):
        stream, _ = UnitStream.of((t,), held, config.stages, Lanes(interpret=False))
        _, fitting = more_rows_mosaic_gpu.that_fit(stream, config, 128)
        assert (fitting.splits, fitting.down) == (2, down)


@pytest.mark.parametrize("splits", [1, 3])
def test_slices_of_different_lengths_give_the_sum(splits: int) -> None:
    """Four units across: one slice of all, and three of 2, 1 and 1."""
    case = CASES[0]
    x = activations(2, case.shape[1], seed=2)
    config = MoreRowsConfig(splits=splits, stages=1)
    (y,), _ = matmul_mosaic_gpu.matmul(
        x, (case.tiled(),), None, NO_TILE, config=config, interpret=True
    )
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)


def test_a_slice_of_more_tiles_than_lanes_is_refused() -> None:
    case = Case("wide", (64, 130 * 128), codec="bf16", tile=(64, 128))
    config = MoreRowsConfig(splits=1, stages=2)
    with pytest.raises(UserError, match="encode it with wider tiles"):
        matmul_mosaic_gpu.matmul(
            activations(1, case.shape[1], seed=1),
            (case.tiled(),),
            None,
            NO_TILE,
            config=config,
            interpret=True,
        )


@pytest.mark.parametrize("warpgroups", [1, 2])
@pytest.mark.parametrize("k", [512, 640], ids=["a turn", "more than a turn"])
def test_warps_that_take_turns_give_the_sum(k: int, warpgroups: int) -> None:
    """Four and six units across, for four warps and for eight, of which some have none."""
    case = dataclasses.replace(CASES[0], shape=(128, k))
    x = activations(2, k, seed=2)
    (y,), _ = matmul_mosaic_gpu.matmul(
        x, (case.tiled(),), None, NO_TILE, config=FewRowsConfig(warpgroups), interpret=True
    )
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("splits", [1, 2, 4])
def test_every_split_of_k_gives_the_sum(splits: int) -> None:
    case = CASES[0]
    x = activations(2, case.shape[1], seed=2)
    config = MoreRowsConfig(splits=splits, stages=2)
    (y,), _ = matmul_mosaic_gpu.matmul(
        x, (case.tiled(),), None, NO_TILE, config=config, interpret=True
    )
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)
