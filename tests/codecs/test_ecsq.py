"""The `ecsq` codec: its format from the description alone, its rates, and its errors."""

import dataclasses
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import codecjax
from codecjax.codecs import cacheable_tiles, ecsq, ecsq_plan, encode, own_arrays, plan, pooled
from codecjax.codecs.distortion import measure
from codecjax.codecs.ecsq_histogram import histogram
from codecjax.codecs.ecsq_plan import Layout, Target
from codecjax.codecs.ecsq_symbols import FINE, PAIR, SINGLE, SymbolLayout
from codecjax.errors import UserError
from codecjax.io.checksums import tile_checksums
from codecjax.operations import decode
from codecjax.tiles import TiledMatrix
from experiments.round_to_nearest import BASELINES
from kernels_pallas.arg_specs import gaussian_weight
from tests.codecs.test_window import to_bits

TILE = (64, 128)


def mse(w: jax.Array, other: jax.Array) -> float:
    error = np.asarray(w, np.float64) - np.asarray(other, np.float64)
    return float(np.square(error).mean())


def planned(w: jax.Array, rate: float, symbols: SymbolLayout) -> ecsq_plan.Plan:
    """A plan whose symbols have one layout, whichever is best; of a matrix of whole tiles."""
    layout = Layout(weights=w.size, lanes=w.size // 64, fixed_bits=w.size // 2, copies=1)
    counts = histogram([(w, np.zeros(w.shape[1], int))])
    return ecsq_plan._planned(counts, layout, Target(rate), symbols)


def symbols_of(arrays: dict[str, np.ndarray], tile: int, table_of: np.ndarray) -> np.ndarray:
    """uint8[G, STEPS, 128] of one tile, decoded lane by lane."""
    tables, stream = arrays["table"].tolist(), arrays["stream"].tolist()
    bits = len(tables[0]).bit_length() - 1
    symbols = np.zeros(table_of.shape, np.uint8)
    for group, warp in np.ndindex(len(table_of), 4):
        position = int(arrays["starts"][tile, group, warp])
        states = arrays["states"][tile, group, 32 * warp :][:32].tolist()
        for step, lane in np.ndindex(table_of.shape[1], 32):
            table = tables[table_of[group, step, 32 * warp + lane]]
            entry = table[states[lane] % len(table)]
            state = (entry >> 8 & 0xFFF) * (states[lane] >> bits) + (entry >> 20)
            if state < 2**16:
                state = state << 16 | stream[position]
                position += 1
            states[lane] = state
            symbols[group, step, 32 * warp + lane] = entry & 0xFF
        assert states == [2**16] * 32
    return symbols


def oracle(t: TiledMatrix, symbols: SymbolLayout) -> np.ndarray:
    """Decodes tiles of one unit from the format's description alone, one weight at a time."""
    arrays = {name: np.asarray(array) for name, array in t.arrays.items()}
    w = np.zeros((t.grid[0] * 64, t.grid[1] * 128), ml_dtypes.bfloat16)
    steps = {SINGLE: 2, PAIR: 1, FINE: 4}[symbols]
    for tile in range(t.tiles):
        table_of = np.zeros((1, 32 * steps, 128), int)
        for step, lane in np.ndindex(32 * steps, 128):
            row = 16 * (lane // 32) + 8 * (step // steps % 2) + lane % 32 // 4
            is_rest = symbols is FINE and step % 2
            table_of[0, step, lane] = 0 if is_rest else arrays["rows"][tile // t.grid[1], row] & 7
        coded = symbols_of(arrays, tile, table_of)[0].astype(int)
        for register, lane, half in np.ndindex(32, 128, 2):
            row = 16 * (lane // 32) + 8 * (register % 2) + lane % 32 // 4
            column = 8 * (register // 2) + 2 * (lane % 4) + half
            of_register = coded[steps * register :, lane]
            if symbols is SINGLE:
                index = of_register[half] - 128
            elif symbols is PAIR:
                index = (of_register[0] >> 4 * half & 15) - 8
            else:
                index = 8 * (of_register[2 * half] - 128) + of_register[2 * half + 1]
            code = int(arrays["rows"][tile // t.grid[1], row])
            quarter = np.float32(2.0 ** ((code >> 3) % 4 / 4))
            step = arrays["step"][code & 7] * (quarter * np.float32(2.0 ** ((code >> 3) // 4)))
            place = (tile // t.grid[1] * 64 + row, tile % t.grid[1] * 128 + column)
            w[place] = np.float32(np.float32(index) * step)
    return w[: t.shape[0], : t.shape[1]]


@pytest.mark.parametrize(
    ("symbols", "rate"), [(SINGLE, 5.0), (PAIR, 7.0), (FINE, 11.0)], ids=["single", "pair", "fine"]
)
def test_format_is_as_described(symbols: SymbolLayout, rate: float) -> None:
    # An outlier, so that a row is shifted; it and its row's neighbours must survive that.
    w = gaussian_weight(128, 256, 0).at[5, 9].set(9.0)
    found = planned(w, rate, symbols)
    assert found.symbols is symbols
    t = ecsq.encode(w, TILE, rate, 0.0, plan=found)
    assert np.asarray(t.arrays["rows"])[0, 5] >> 3 > 0
    decoded = decode(t)
    chex.assert_trees_all_equal(to_bits(decoded), to_bits(oracle(t, symbols)))
    # Weights are rounded to the nearest value or to the one below, and not beyond.
    row_step = np.asarray(ecsq.row_scale(jnp.float32(found.step), t.arrays["rows"] >> 3))
    error = np.abs(np.asarray(w, np.float64) - np.asarray(decoded, np.float64))
    within = 1.5 * row_step.reshape(-1, 1) + np.abs(np.asarray(decoded, np.float64)) / 256
    largest = np.asarray(found.largest)[np.asarray(t.arrays["rows"]).reshape(-1, 1) & 7]
    saturated = np.abs(np.asarray(w, np.float64)) > (largest + 0.5) * row_step.reshape(-1, 1)
    assert (error <= within)[~saturated].all()
    assert saturated.mean() < 0.01


@pytest.mark.parametrize("rate", [2, 3.3, 4.25, 6, 8])
@pytest.mark.parametrize("shape", [(512, 512), (500, 700)])
def test_rates_are_met(shape: tuple[int, int], rate: float) -> None:
    t = encode(gaussian_weight(*shape, 1), "ecsq", bits_per_weight=rate)
    assert t.bits_per_weight == pytest.approx(rate, rel=0.02)
    assert t.nbytes == sum(np.asarray(array).nbytes for array in t.arrays.values())
    assert decode(t).shape == shape


def test_more_bits_give_less_error_and_encoding_is_deterministic() -> None:
    w = gaussian_weight(512, 512, 1)
    errors = [mse(w, decode(encode(w, "ecsq", bits_per_weight=rate))) for rate in (2, 3, 4, 5)]
    # Six decibels a bit at high rates, somewhat less at low ones.
    for worse, better in itertools.pairwise(errors):
        assert 3.2 < worse / better < 4.4
    one, other = (encode(w, "ecsq", bits_per_weight=3) for _ in range(2))
    chex.assert_trees_all_equal(one.arrays, other.arrays)


@pytest.mark.parametrize("baseline", BASELINES)
def test_error_is_below_that_of_rounding_to_nearest_at_the_same_bits(baseline: str) -> None:
    # Rows differ in scale, and some have tails as trained ones do.
    random = np.random.default_rng(0)
    w = jnp.asarray(random.standard_t(8, (512, 512)) * np.exp(0.3 * random.normal(size=(512, 1))))
    w = (0.02 * w).astype(jnp.bfloat16)
    rounded = BASELINES[baseline](w)
    rate = min(rounded.bits_per_weight / 1.005, 8.0)
    t = encode(w, "ecsq", bits_per_weight=rate)
    assert t.bits_per_weight <= rounded.bits_per_weight
    assert mse(w, decode(t)) < 0.8 * mse(w, rounded.weights)


def test_a_target_error_is_met_by_as_few_bits_as_a_target_rate() -> None:
    w = gaussian_weight(512, 512, 2)
    at_rate = encode(w, "ecsq", bits_per_weight=4)
    wanted = mse(w, decode(at_rate))
    t = encode(w, "ecsq", mse=wanted)
    assert mse(w, decode(t)) == pytest.approx(wanted, rel=0.02)
    assert t.bits_per_weight == pytest.approx(at_rate.bits_per_weight, rel=0.01)


def test_one_multiplier_spends_bits_where_they_reduce_the_error_most() -> None:
    small, large = gaussian_weight(512, 512, 3), 8 * gaussian_weight(512, 512, 4)
    found = plan("ecsq", lambda: [small, large], (256, 256), 2, bits_per_weight=4.0)
    together = [ecsq.encode(w, (256, 256), 4.0, 0.0, plan=found) for w in (small, large)]
    rates = [t.bits_per_weight for t in together]
    assert sum(rates) / 2 == pytest.approx(4, rel=0.02)
    # Eight times the spread, three bits more.
    assert rates[1] - rates[0] == pytest.approx(3, abs=0.3)
    alone = [encode(w, "ecsq", bits_per_weight=4) for w in (small, large)]
    pairs = list(zip((small, large), together, strict=True))
    assert measure(pairs).mse < 0.3 * measure(list(zip((small, large), alone, strict=True))).mse


def test_a_pool_holds_equal_tables_once() -> None:
    matrices = [gaussian_weight(256, 512, 5), gaussian_weight(200, 300, 6)]
    found = plan("ecsq", lambda: matrices, (256, 256), 1, bits_per_weight=4.0)
    before = [ecsq.encode(w, (256, 256), 4.0, 0.0, plan=found) for w in matrices]
    before.append(encode(gaussian_weight(256, 256, 7), "ecsq", bits_per_weight=3.9))
    after = pooled("ecsq", before)
    tables = [len(t.arrays["table"]) for t in before]
    assert len(after[0].arrays["table"]) == tables[0] + tables[2]
    assert sum(t.nbytes for t in after) == sum(a.nbytes for a in after[0].arrays.values())
    for one, other in zip(before, after, strict=True):
        chex.assert_trees_all_equal(own_arrays(other), one.arrays)
        chex.assert_trees_all_equal(to_bits(decode(other)), to_bits(decode(one)))
        assert cacheable_tiles(other).all()
    weights = sum(w.size for w in matrices)
    assert 8 * sum(t.nbytes for t in after[:2]) / weights == pytest.approx(4, rel=0.02)


def test_an_outlier_costs_its_own_row_only() -> None:
    plain = gaussian_weight(512, 512, 8)
    w = plain.at[100, 7].set(1000 * 0.02)
    t = encode(w, "ecsq", bits_per_weight=4)
    decoded = np.asarray(decode(t), np.float64)
    assert decoded[100, 7] == pytest.approx(20, rel=0.05)
    others = np.arange(512) != 100
    reference = mse(plain, decode(encode(plain, "ecsq", bits_per_weight=4)))
    assert mse(plain[others], decoded[others]) < 1.1 * reference


@pytest.mark.parametrize(
    "w",
    [
        np.zeros((512, 512)),
        np.full((512, 512), 3.0e38),
        np.random.default_rng(0).normal(size=(512, 512)) * 1e-39,
        np.where(np.random.default_rng(0).random((512, 512)) < 0.01, 1.0, 0.0),
    ],
    ids=["zeros", "huge", "subnormal", "sparse"],
)
def test_strange_matrices_stay_finite_and_close(w: np.ndarray) -> None:
    w = jnp.asarray(w, jnp.float32).astype(jnp.bfloat16)
    t = encode(w, "ecsq", bits_per_weight=4)
    assert t.bits_per_weight <= 4 * 1.02
    decoded = np.asarray(decode(t), np.float64)
    wide = np.asarray(w, np.float64)
    assert np.isfinite(decoded).all()
    scale = max(np.abs(wide).mean(), 1e-30)
    assert np.abs(decoded - wide).max() <= scale


def test_damage_never_reads_outside_and_checksums_find_it() -> None:
    t = encode(gaussian_weight(256, 256, 9), "ecsq", TILE, bits_per_weight=5)
    host = {name: np.asarray(array) for name, array in t.arrays.items()}
    whole, intact = to_bits(decode(t)), tile_checksums(t, host)
    random, shown = np.random.default_rng(0), 0
    for name, array in host.items():
        for _ in range(8):
            damaged = array.copy()
            raw = damaged.view(np.uint8).reshape(-1)
            raw[random.integers(raw.size)] ^= np.uint8(1 << random.integers(8))
            after = dataclasses.replace(t, arrays={**t.arrays, name: jnp.asarray(damaged)})
            differs = to_bits(decode(after)) != whole
            shown += bool(differs.any())
            found = tile_checksums(after, {**host, name: damaged})
            assert found != intact
            for tile in np.unique(np.argwhere(differs) // np.array(TILE), axis=0).tolist():
                if name != "stream":
                    assert found[tile[0] * 2 + tile[1]] != intact[tile[0] * 2 + tile[1]]
    assert shown > 24


def test_what_cannot_be_quantised_is_named() -> None:
    w = gaussian_weight(256, 256, 0)
    for value, name in ((jnp.nan, "nan"), (-jnp.inf, "-inf")):
        sentence = f"row 17, column 33 is {name}, .* use codec 'window'"
        with pytest.raises(UserError, match=sentence):
            encode(w.at[17, 33].set(value), "ecsq")


def test_a_rate_that_cannot_be_met_is_an_error_with_a_remedy() -> None:
    with pytest.raises(UserError, match=r"needs .* bits a weight for a matrix of 64x128.*raise"):
        encode(gaussian_weight(64, 128, 0), "ecsq", TILE, bits_per_weight=3)


@pytest.mark.parametrize("options", [{"bits_per_weight": 1.9}, {"bits_per_weight": math.nan}])
def test_rates_out_of_reach_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"no bits_per_weight .*: choose a number from 2 to 8"):
        encode(gaussian_weight(64, 128, 0), "ecsq", **options)
    with pytest.raises(UserError, match=r"no mse 'small': choose a number from 0 to 1e\+30"):
        encode(gaussian_weight(64, 128, 0), "ecsq", mse="small")  # type: ignore[arg-type]


def test_resident_tiles_are_read_from_their_pages() -> None:
    w = gaussian_weight(256, 512, 3)
    t = encode(w, "ecsq", bits_per_weight=4)
    x = jnp.ones((1, 512), jnp.bfloat16)
    pages = jnp.zeros((1, 256, 256), jnp.bfloat16)
    y = codecjax.matmul(x, t, pages, jnp.array([-1, 0], jnp.int32))
    left = np.asarray(decode(t), np.float32)[:, :256].sum(axis=1)
    np.testing.assert_allclose(np.asarray(y)[0], left, rtol=1e-4, atol=1e-4)
