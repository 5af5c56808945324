"""The Mosaic GPU decode kernels in the Pallas interpreter: the same bits as the reference."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs import pooled
from kernels_pallas import decode_mosaic_gpu, reference_xla
from kernels_pallas.decode_mosaic_gpu import DecodeConfig
from kernels_pallas.entropy_mosaic_gpu import ENTROPY_CODED
from tests.kernels_pallas.cases import (
    CASES,
    FILLS,
    FIRST_TILE,
    HITS,
    PAGED,
    TOGETHER,
    Case,
    assert_page_holds,
    bits,
    residency,
)

NO_TILE = jnp.int32(0)
FIRST = jnp.int32(FIRST_TILE)
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
paged = pytest.mark.parametrize("case", PAGED, ids=lambda case: case.name)


def _two_stages(case: Case, steps: int) -> DecodeConfig | None:
    """Settings for the cases that have any."""
    return None if case.codec in ENTROPY_CODED else DecodeConfig(steps, stages=2)


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
