"""The `int8_rans` codec: its format from the description alone, and 10,000 damaged matrices."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import codecjax
from codecjax.codecs import (
    cacheable_tiles,
    encode,
    int8_choice,
    int8_rans,
    own_arrays,
    parts,
    pooled,
)
from codecjax.codecs.int8_choice import choose_predictions, residual_counts
from codecjax.codecs.int8_prediction import PREDICTIONS, residuals
from codecjax.codecs.int8_rows import quantise
from codecjax.errors import UserError
from codecjax.operations import decode
from codecjax.tiles import TiledMatrix
from kernels_pallas.arg_specs import gaussian_weight
from tests.codecs.damage import check_damage
from tests.codecs.test_ecsq import symbols_of
from tests.codecs.test_window import to_bits

TILE = (64, 128)
CHOICES = (*PREDICTIONS, "best")
every_choice = pytest.mark.parametrize("prediction", CHOICES)


def make(w: jax.Array, tile: tuple[int, int] = TILE, **options: Any) -> TiledMatrix:
    """The matrix, with small tables so that small matrices are not stored dense."""
    t = encode(w, "int8_rans", tile, **{"probability_bits": 10, **options})
    assert not t.is_dense
    return t


def smooth_and_rough() -> jax.Array:
    """bf16[64, 512]: a tile of noise, one smooth across, one smooth down, one smooth both ways."""
    random = np.random.default_rng(0)
    steps = random.normal(size=(64, 128))
    tiles = [
        20 * steps,
        np.cumsum(steps, axis=1) + 30 * random.normal(size=(64, 1)),
        np.cumsum(steps, axis=0) + 30 * random.normal(size=(1, 128)),
        30 * random.normal(size=(64, 1)) + 30 * random.normal(size=(1, 128)) + 0.1 * steps,
    ]
    # One scale for all rows, so that steps between them are not mere changes of scale.
    return jnp.asarray(np.clip(np.block([tiles]), -127, 127), jnp.bfloat16).at[:, 0].set(127)


def oracle(t: TiledMatrix) -> np.ndarray:
    """Decodes tiles of one unit from the format's description alone, one weight at a time."""
    arrays = {name: np.asarray(array) for name, array in t.arrays.items()}
    w = np.zeros((t.grid[0] * 64, t.grid[1] * 128), ml_dtypes.bfloat16)
    for tile in range(t.tiles):
        coded = symbols_of(arrays, tile, np.zeros((1, 64, 128), int))[0].astype(int)
        residual = np.zeros(TILE, int)
        for register, lane, half in np.ndindex(32, 128, 2):
            row = 16 * (lane // 32) + 8 * (register % 2) + lane % 32 // 4
            column = 8 * (register // 2) + 2 * (lane % 4) + half
            residual[row, column] = coded[2 * register + half, lane] - 128
        values = np.zeros((65, 129), int)
        for row, column in np.ndindex(*TILE):
            corner, top, left = (
                values[row, column],
                values[row, column + 1],
                values[row + 1, column],
            )
            predicted = (0, left, top, (left + top) // 2, left + top - corner)
            value = predicted[arrays["prediction"][tile]] + residual[row, column]
            values[row + 1, column + 1] = (value + 128) % 256 - 128
        rows, columns = tile // t.grid[1] * 64, tile % t.grid[1] * 128
        scale = arrays["scale"][tile // t.grid[1]].astype(np.float32)[:, None]
        w[rows : rows + 64, columns : columns + 128] = values[1:, 1:].astype(np.float32) * scale
    return w[: t.shape[0], : t.shape[1]]


@every_choice
@pytest.mark.parametrize("scale_bits", [16, 32])
def test_format_is_as_described(prediction: str, scale_bits: int) -> None:
    w = smooth_and_rough()[:60, 100:340]
    t = make(w, prediction=prediction, scale_bits=scale_bits)
    chex.assert_trees_all_equal(to_bits(decode(t)), to_bits(oracle(t)))


@pytest.mark.parametrize(
    ("shape", "tile", "prediction"),
    [
        *[((70, 300), TILE, prediction) for prediction in CHOICES],
        ((256, 512), (256, 256), "avg"),
        ((100, 500), (128, 384), "best"),
    ],
)
def test_values_are_those_that_the_quantiser_chose(
    shape: tuple[int, int], tile: tuple[int, int], prediction: str
) -> None:
    w = gaussian_weight(*shape, 1)
    t = make(w, tile, prediction=prediction)
    values, scale = quantise(w, 16)
    chex.assert_trees_all_equal(int8_rans.values_of(t), values)
    expected = np.asarray(values, np.float32) * np.asarray(scale, np.float32)[:, None]
    chex.assert_trees_all_equal(to_bits(decode(t)), to_bits(expected.astype(ml_dtypes.bfloat16)))
    assert t.nbytes == sum(np.asarray(array).nbytes for array in t.arrays.values())
    if prediction != "best":
        assert (np.asarray(t.arrays["prediction"]) == PREDICTIONS.index(prediction)).all()


@pytest.mark.parametrize("bits", [10, 11, 12])
def test_gaussian_weights_take_little_more_than_their_entropy(bits: int) -> None:
    w = gaussian_weight(512, 4096, 0)
    t = encode(w, "int8_rans", probability_bits=bits)
    share = np.unique(np.asarray(quantise(w, 16)[0]), return_counts=True)[1] / w.size
    entropy = -(share * np.log2(share)).sum()
    assert 7.0 < entropy < 7.2
    stored = {name: 8 * np.asarray(array).nbytes / w.size for name, array in t.arrays.items()}
    assert entropy < stored["stream"] + stored["states"]
    # A lane's first state holds all but its share of the last word; 10 bits cost rare symbols.
    assert t.bits_per_weight < entropy + (0.25 if bits == 10 else 0.2)


def test_best_chooses_for_each_tile_and_beats_every_single_prediction() -> None:
    w = smooth_and_rough()
    best = make(w, prediction="best")
    chosen = [PREDICTIONS[number] for number in np.asarray(best.arrays["prediction"])]
    assert chosen == ["none", "left", "top", "planar"]
    streams = {
        name: int(np.count_nonzero(make(w, prediction=name).arrays["stream"])) for name in CHOICES
    }
    assert all(streams["best"] < 0.9 * streams[name] for name in PREDICTIONS)


def test_choices_are_no_worse_than_the_best_single_prediction() -> None:
    counts = np.asarray(
        residual_counts(quantise(gaussian_weight(256, 512, 3), 16)[0], TILE, PREDICTIONS)
    )
    values = quantise(gaussian_weight(256, 512, 3), 16)[0]
    tile = values[64:128, 128:256]
    for number, name in enumerate(PREDICTIONS):
        own = np.bincount(np.asarray(residuals(tile, name)).astype(int).reshape(-1) + 128)
        chex.assert_trees_all_equal(counts[number, 5, : own.size], own.astype(np.int32))
        assert counts[number, 5].sum() == 64 * 128
    chosen = choose_predictions(counts)
    mixed = int8_choice.entropy_bits(counts[chosen, np.arange(16)].sum(axis=0))
    assert mixed <= min(int8_choice.entropy_bits(each.sum(axis=0)) for each in counts)


def test_entropy_is_that_of_the_counts() -> None:
    assert int8_choice.entropy_bits(np.array([3, 0, 1])) == pytest.approx(
        3 * math.log2(4 / 3) + math.log2(4)
    )


def test_parts_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    w = gaussian_weight(300, 250, 0)
    whole = make(w, prediction="best")
    # Two of five tile rows at a time: the last part begins within the one before it.
    monkeypatch.setattr(parts, "WEIGHTS_AT_ONCE", 2 * 64 * 256)
    for compiled in (int8_rans._symbols, residual_counts):
        compiled.clear_cache()
    chex.assert_trees_all_equal(make(w, prediction="best").arrays, whole.arrays)
    for compiled in (int8_rans._symbols, residual_counts):
        compiled.clear_cache()


def test_matrices_come_back_out_of_their_pool() -> None:
    before = [
        make(smooth_and_rough(), prediction="best"),
        encode(gaussian_weight(3, 256, 3), "int8_rans", TILE, prediction="best"),
        make(gaussian_weight(64, 512, 4), prediction="best"),
    ]
    after = pooled("int8_rans", before)
    assert [t.is_dense for t in after] == [False, True, False]
    assert sum(t.nbytes for t in after[::2]) == sum(a.nbytes for a in after[0].arrays.values())
    for one, other in zip(before, after, strict=True):
        chex.assert_trees_all_equal(own_arrays(other), one.arrays)
        chex.assert_trees_all_equal(to_bits(decode(other)), to_bits(decode(one)))
        assert cacheable_tiles(other).all() == (not one.is_dense)


def test_resident_tiles_are_read_from_their_pages() -> None:
    t = make(gaussian_weight(64, 256, 3), prediction="avg")
    x = jnp.ones((1, 256), jnp.bfloat16)
    pages = jnp.zeros((1, *TILE), jnp.bfloat16)
    y = codecjax.matmul(x, t, pages, jnp.array([-1, 0], jnp.int32))
    left = np.asarray(decode(t), np.float32)[:, :128].sum(axis=1)
    np.testing.assert_allclose(np.asarray(y)[0], left, rtol=1e-4, atol=1e-4)


def test_damage_never_reads_outside_and_checksums_find_all_that_shows() -> None:
    t = make(smooth_and_rough()[:, 128:384], prediction="best")
    assert set(np.asarray(t.arrays["prediction"])) == {1, 2}
    shown = check_damage(t, int8_rans, 10_000)
    assert shown.keys() == {"states", "starts", "stream", "table", "scale", "prediction"}
    # No array is mere decoration.
    assert min(shown.values()) > 100, shown


def test_what_cannot_be_quantised_is_named() -> None:
    w = gaussian_weight(256, 256, 0)
    for value, name in ((jnp.nan, "nan"), (jnp.inf, "inf")):
        sentence = f"row 17, column 33 is {name}, .*'int8_rans' .* use codec 'window'"
        with pytest.raises(UserError, match=sentence):
            encode(w.at[17, 33].set(value), "int8_rans")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("prediction", "paeth", "'paeth': choose one of none, left, top, avg, planar, best"),
        ("scale_bits", 8, "scale_bits 8: choose one of 16, 32"),
        ("probability_bits", 9, "probability_bits 9: choose one of 10, 11, 12"),
        ("width", 11, "no option 'width': its options are prediction, probability_bits, scale"),
    ],
)
def test_bad_options_are_refused(option: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        encode(gaussian_weight(64, 128, 0), "int8_rans", **{option: value})
