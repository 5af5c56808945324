"""The Mosaic GPU kernels in the Pallas interpreter: the same bits as the reference."""

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
from kernels_pallas import decode_mosaic_gpu, matmul_mosaic_gpu, reference_xla
from kernels_pallas.arg_specs import activations
from kernels_pallas.decode_mosaic_gpu import DecodeConfig
from kernels_pallas.few_rows_mosaic_gpu import FewRowsConfig
from kernels_pallas.matmul_mosaic_gpu import MatmulConfig
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
)

NO_TILE = jnp.int32(0)
FIRST = jnp.int32(FIRST_TILE)
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# Pages do not depend on the width: one is enough for the slow interpreter.
PAGED = [case for case in CASES if case.codec != "bf16" and case.width == 11]
paged = pytest.mark.parametrize("case", PAGED, ids=lambda case: case.name)
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


def _two_stages(case: Case, steps: int) -> DecodeConfig | None:
    """Settings for the cases that have any."""
    return None if case.codec == "rans" else DecodeConfig(steps, stages=2)


@by_name
def test_decode_gives_back_every_bit(case: Case) -> None:
    w, _ = decode_mosaic_gpu.decode(case.tiled(), None, NO_TILE, interpret=True)
    chex.assert_trees_all_equal(bits(w), bits(case.weight()))


@pytest.mark.parametrize(("steps", "stages"), [(2, 2), (4, 2), (4, 3)])
def test_decode_walks_any_number_of_units(steps: int, stages: int) -> None:
    case, config = CASES[0], DecodeConfig(steps, stages)
    w, _ = decode_mosaic_gpu.decode(case.tiled(), None, NO_TILE, config=config, interpret=True)
    chex.assert_trees_all_equal(bits(w), bits(case.weight()))


@pytest.mark.parametrize(("steps", "stages"), [(2, 1), (2, 3), (1, 0)])
def test_stages_that_would_wait_for_ever_are_refused(steps: int, stages: int) -> None:
    with pytest.raises(ValueError, match="cannot serve"):
        DecodeConfig(steps, stages)


def test_decode_finds_its_matrix_among_others() -> None:
    shared = pooled("window", [case.tiled() for case in TOGETHER])
    for case, t in zip(TOGETHER, shared, strict=True):
        w, _ = decode_mosaic_gpu.decode(t, None, NO_TILE, interpret=True)
        chex.assert_trees_all_equal(bits(w), bits(case.weight()))


@with_rows(CASES, ["width 11", "width 16", "verbatim tile", "no multiple of a tile", "dense"])
def test_matmul_is_right_and_the_same_whatever_the_codec(case: Case, n: int) -> None:
    x = activations(n, case.shape[1], seed=1)
    (y,), _ = matmul_mosaic_gpu.matmul(x, (case.tiled(),), None, NO_TILE, interpret=True)
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)
    dense = Case("dense", case.shape, codec="bf16", escapes=case.escapes).tiled()
    (baseline,), _ = matmul_mosaic_gpu.matmul(x, (dense,), None, NO_TILE, interpret=True)
    chex.assert_trees_all_equal(y, baseline)


@with_rows(PAGED, ["width 11", "verbatim tile", "rans"])
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
    "config", [MatmulConfig(splits=2, stages=2), FewRowsConfig(1)], ids=["clusters", "warps"]
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


@paged
def test_decode_fills_and_reads_pages_as_the_reference_does(case: Case) -> None:
    t = case.tiled()
    for entries in (FILLS, HITS):
        mosaic, after = decode_mosaic_gpu.decode(
            t, residency(t, entries), FIRST, config=_two_stages(case, 2), interpret=True
        )
        reference, expected = reference_xla.decode(t, residency(t, entries), FIRST)
        chex.assert_trees_all_equal(bits(mosaic), bits(reference))
        assert after is not None
        assert expected is not None
        chex.assert_trees_all_equal(bits(after.pages), bits(expected.pages))
        chex.assert_trees_all_equal(after.decoded, expected.decoded)


@paged
def test_fill_decodes_into_pages_and_nothing_else(case: Case) -> None:
    t = case.tiled()
    config = _two_stages(case, t.unit_grid[1])
    mosaic = decode_mosaic_gpu.fill(t, residency(t, FILLS), FIRST, config=config, interpret=True)
    reference = reference_xla.fill(t, residency(t, FILLS), FIRST)
    for after in (mosaic, reference):
        assert after.pages is not None
        assert_page_holds(after.pages[4], case.weight(), t, 1)
        assert (jnp.delete(after.pages, 4, axis=0) == 7.0).all()
        mine = after.decoded[FIRST_TILE : FIRST_TILE + t.tiles]
        np.testing.assert_array_equal(mine, np.arange(t.tiles)[:, None] == np.ones_like(mine))


@pytest.mark.parametrize("n", [1, 8, 9, 33, 64])
def test_matmul_multiplies_any_number_of_rows(n: int) -> None:
    case = CASES[0]
    x = activations(n, case.shape[1], seed=n)
    (y,), _ = matmul_mosaic_gpu.matmul(x, (case.tiled(),), None, NO_TILE, interpret=True)
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert y.shape == exact.shape
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("splits", [1, 3])
def test_slices_of_different_lengths_give_the_sum(splits: int) -> None:
    """Four units across: one slice of all, and three of 2, 1 and 1."""
    case = CASES[0]
    x = activations(2, case.shape[1], seed=2)
    config = MatmulConfig(splits=splits, stages=1)
    (y,), _ = matmul_mosaic_gpu.matmul(
        x, (case.tiled(),), None, NO_TILE, config=config, interpret=True
    )
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)


def test_a_slice_of_more_tiles_than_lanes_is_refused() -> None:
    case = Case("wide", (64, 130 * 128), codec="bf16", tile=(64, 128))
    config = MatmulConfig(splits=1, stages=2)
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
    config = MatmulConfig(splits=splits, stages=2)
    (y,), _ = matmul_mosaic_gpu.matmul(
        x, (case.tiled(),), None, NO_TILE, config=config, interpret=True
    )
    exact = np.asarray(x, np.float64) @ np.asarray(case.weight(), np.float64).T
    assert np.linalg.norm(np.asarray(y) - exact) < 1e-6 * np.linalg.norm(exact)
