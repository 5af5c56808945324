"""Sums over steps, bytes that a step reads, decode times by tile, and comparisons of logits."""

import numpy as np
import pytest

from codecjax.cache import CacheObject
from codecjax.models.model import Model
from codecjax.models.random_weights import random_model
from codecjax.tiles import page_bytes
from experiments import figures
from experiments.calibrate import Calibration
from experiments.exactness import Answer, compare
from experiments.shapes import SHAPES
from experiments.traffic import weight_traffic

TILE = (64, 128)


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(SHAPES["tiny"], 0, "window", TILE, {})


def test_a_step_reads_every_compressed_byte_once(model: Model) -> None:
    traffic = weight_traffic(model)
    absent = np.full(model.tile_count, -1, np.int32)
    # All rows of the embedding but one are not looked up.
    rows = model.config.vocab_size
    skipped = model.parameters["embedding"].nbytes * (rows - 1) / rows
    assert traffic.step_bytes(absent) == pytest.approx(model.nbytes - skipped)
    resident = np.arange(model.tile_count, dtype=np.int32)
    others = model.nbytes - skipped - sum(t.nbytes for t in model.matrices.values())
    pages = model.tile_count * page_bytes(TILE)
    assert traffic.step_bytes(resident) == pytest.approx(pages + others)


def test_filling_a_page_reads_the_compressed_tile(model: Model) -> None:
    traffic = weight_traffic(model)
    absent = np.full(model.tile_count, -1, np.int32)
    assert traffic.step_bytes(absent - 7) == traffic.step_bytes(absent)


def test_what_is_stored_plainly_is_read_whatever_is_resident() -> None:
    plain = random_model(SHAPES["tiny"], 0, "bf16", TILE, {})
    traffic = weight_traffic(plain)
    skipped = (plain.config.vocab_size - 1) * plain.config.hidden_size * 2
    for entry in (-1, 0):
        table = np.full(plain.tile_count, entry, np.int32)
        assert traffic.step_bytes(table) == plain.nbytes - skipped == traffic.constant_bytes


def test_decode_time_is_the_mean_over_the_tiles_decoded() -> None:
    calibration = Calibration({}, np.array([1.0, 1.0, 4.0, 0.0]))
    assert calibration.mean_tile_seconds == pytest.approx(2.0)
    assert calibration.seconds_per_tile(np.array([-1, 0, -2, -1])) == pytest.approx(2.5)
    assert calibration.seconds_per_tile(np.array([0, 1, 2, -1])) is None
    assert Calibration({}, np.zeros(3)).mean_tile_seconds is None


def line(**fields: float) -> figures.Line:
    return {"seconds": 1.0, "hits": 0, "misses": 2, "bytes": 40, **fields}


def test_the_first_token_stands_apart() -> None:
    times = figures.time_figures([line(seconds=9), line(seconds=1), line(seconds=3)])
    assert times == {
        "tokens_per_second": 0.5,
        "seconds_per_token": 2.0,
        "median_seconds_per_token": 2.0,
        "first_token_seconds": 9,
    }
    assert figures.time_figures([line()])["tokens_per_second"] is None


def test_hit_rates_leave_out_what_could_not_be_saved() -> None:
    objects = [CacheObject("a", np.arange(1), 3.0), CacheObject("b", np.arange(1), -1.0)]
    lines = [
        line(byte_hits=0, cost_hits=0.0),
        line(hits=1, misses=1, byte_hits=20, cost_hits=3.0),
    ]
    rates = figures.hit_figures(lines, objects)
    assert rates == {"object": 0.25, "byte": 0.25, "cost": 0.5}
    assert figures.hit_figures([line(misses=0, bytes=0, byte_hits=0, cost_hits=0)], []) == {
        "object": None,
        "byte": None,
        "cost": None,
    }


def test_tiles_that_were_not_planned_are_found() -> None:
    good = line(tiles_decoded=2, tiles_expected=2)
    assert figures.tile_figures([good, good], [])["as_planned"] is True
    bad = line(tiles_decoded=3, tiles_expected=2)
    assert figures.tile_figures([good, bad], [])["as_planned"] is False


def answer(first: float, tokens: tuple[int, ...] = (1,)) -> Answer:
    logits = np.array([[first, 2.0]], np.float32)
    return Answer(tokens, logits, np.zeros((3, 2), np.float32))


def test_equal_answers_have_equal_bits() -> None:
    same = compare(answer(1.0), answer(1.0))
    assert (same.bit_equal, same.max_abs_difference, same.tokens_equal) == (True, 0.0, True)
    assert same.logits == 8
    # NaN has bits too.
    assert compare(answer(float("nan")), answer(float("nan"))).bit_equal


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [(1.0, 1.5, 0.5), (0.0, -0.0, 0.0), (float("nan"), 1.0, None), (float("inf"), 1.0, None)],
)
def test_the_smallest_difference_is_one(one: float, other: float, difference: float | None) -> None:
    found = compare(answer(one, (0,)), answer(other))
    assert found.bit_equal is False
    assert found.max_abs_difference == difference
    assert found.tokens_equal is False


def test_divergence_is_that_of_the_reference_from_the_answer() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    mine, its = (Answer((1,), each[:1], each) for each in logits)
    shares = [np.exp(each.astype(np.float64)) for each in logits]
    own, expected = (each / each.sum(axis=1, keepdims=True) for each in shares)
    found = compare(mine, its).divergence
    assert found == pytest.approx(np.sum(expected * np.log(expected / own), axis=1).mean())
    assert found != pytest.approx(compare(its, mine).divergence)
    shifted = Answer((1,), mine.steps, mine.sequence + np.float32(3))
    assert compare(shifted, mine).divergence == pytest.approx(0, abs=1e-6)
    broken = Answer((1,), mine.steps, np.full((5, 7), np.nan, np.float32))
    assert compare(broken, mine).divergence is None
