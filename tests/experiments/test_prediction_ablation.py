"""The ablation of predictions: its figures from the weights again, and what it leaves behind."""

import importlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_dict import ConfigDict

from codecjax.codecs import encode
from codecjax.errors import UserError
from configs import prediction_ablation as config_file
from experiments import run
from experiments.prediction_ablation import Row, Source, check, findings, measure
from kernels_pallas.arg_specs import gaussian_weight

ROOT = Path(__file__).parents[2]
TILE = (64, 128)


def entropy(values: np.ndarray) -> float:
    """Bits a value, of zeroth order."""
    share = np.unique(values, return_counts=True)[1] / values.size
    return float(-(share * np.log2(share)).sum())


def left_residuals(w: jax.Array) -> np.ndarray:
    """int[OUT, K] of a matrix of one scale a row, in numpy from its description."""
    wide = np.asarray(w, np.float64)
    scale = (np.abs(wide).max(axis=1, keepdims=True) / 127).astype(jnp.bfloat16)
    values = np.clip(np.round(wide / scale.astype(np.float64)), -127, 127).astype(int)
    before = np.where(np.arange(w.shape[1]) % TILE[1], np.roll(values, 1, axis=1), 0)
    return (values - before) % 256


@pytest.fixture(scope="module")
def source() -> Source:
    rough = gaussian_weight(128, 256, 0)
    # Its values go up and down slowly along a row.
    smooth = jnp.asarray(np.sin(np.arange(256) / 40) + 0.01 * np.asarray(rough), jnp.bfloat16)
    return Source("made up", {"rough": rough, "smooth": smooth}, probability_bits=10)


@pytest.fixture(scope="module")
def rows(source: Source) -> dict[str, Row]:
    return {row.prediction: row for row in measure(source, TILE, 16)}


def test_entropy_is_that_of_residuals(source: Source, rows: dict[str, Row]) -> None:
    matrices = source.matrices.values()
    expected = np.mean([entropy(left_residuals(w)) for w in matrices])
    assert rows["left"].entropy_bits == pytest.approx(expected, abs=1e-9)
    assert rows["left"].coded_bits > expected
    assert rows["left"].weights == 2 * 128 * 256
    assert rows["left"].row_lengths == (256,)


def test_bits_are_those_of_the_arrays(source: Source, rows: dict[str, Row]) -> None:
    for prediction in ("none", "best"):
        stored = [
            encode(w, "int8_rans", TILE, prediction=prediction, probability_bits=10).arrays
            for w in source.matrices.values()
        ]
        weights = rows[prediction].weights
        total = sum(np.asarray(array).nbytes for arrays in stored for array in arrays.values())
        assert rows[prediction].bits_per_weight == 8 * total / weights
        # A table of 4 KiB each, 128 scales in bf16, and a number for each of 4 tiles.
        assert rows[prediction].coded_bits == 8 * (total - 2 * (4096 + 256 + 4)) / weights


def test_matrices_that_a_prediction_helps_are_named(rows: dict[str, Row]) -> None:
    assert rows["none"].saved_bits == {}
    assert set(rows["left"].saved_bits) == set(rows["best"].saved_bits) == {"smooth"}
    assert rows["left"].saved_bits["smooth"] > 1
    assert rows["best"].tiles["none"] == 4
    assert rows["best"].entropy_bits < min(rows["none"].entropy_bits, rows["left"].entropy_bits)
    (sentence,) = findings(list(rows.values()))
    assert "predicts 4 of 8, in smooth; this saves" in sentence


def test_noise_is_not_predicted(source: Source) -> None:
    noise = Source("noise", {"rough": source.matrices["rough"]}, probability_bits=10)
    measured = measure(noise, TILE, 16)
    assert min(measured, key=lambda row: row.entropy_bits).prediction == "none"
    (sentence,) = findings(measured)
    assert "costs" in sentence
    assert "predicts 0 of 4; this saves 0.0000 coded" in sentence


def test_a_matrix_too_small_for_its_table_is_named() -> None:
    small = Source("small", {"tiny": gaussian_weight(3, 5, 0)}, probability_bits=12)
    with pytest.raises(UserError, match=r"tiny of small is so small .* choose fewer"):
        measure(small, TILE, 16)


def config_of(**fields: Any) -> ConfigDict:
    config = config_file.get_config()
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codec.tile_rows": 100}, "tile 100x256"),
        ({"codec.scale_bits": 8}, "scale_bits 8: choose one of 16, 32"),
        ({"model.probability_bits": 9}, "probability_bits 9"),
        ({"random.rows": 0}, "random.rows or random.row_lengths has 0"),
        ({"random.degrees_of_freedom": 0.0}, "degrees_of_freedom 0.0 is impossible"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(config_of(**fields))


def test_the_usual_program_runs_it_and_leaves_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    # Of the model's matrices the key and value of one layer, and few random rows.
    overrides = {"random.rows": 128, "random.row_lengths": (256,), "random.probability_bits": 10}
    config = config_of(**overrides)
    projections = importlib.import_module("experiments.prediction_ablation")
    every = projections.parameters

    def few(config: Any) -> tuple[Any, ...]:
        return tuple(each for each in every(config) if each.name.startswith("layers.0.attention.k"))

    monkeypatch.setattr(projections, "parameters", few)
    file = ROOT / "configs" / "prediction_ablation.py"
    assert run.run(file, config, overrides, tmp_path) == 0
    record = json.loads((tmp_path / "ablation.json").read_text())
    assert record["config"]["random"]["rows"] == 128
    assert record["environment"]["jax"] == jax.__version__
    names = list(dict.fromkeys(row["source"] for row in record["rows"]))
    assert names == ["embedded_model", "Gaussian, rows of 256", "Student's t(4), rows of 256"]
    page = (tmp_path / "report.md").read_text()
    assert page.count("| `best` |") == 3
    assert f"{record['rows'][0]['entropy_bits']:.4f} | +0.0000" in page
    printed = capsys.readouterr().out
    assert "layers.0.attention.key" in printed
    assert "report.md" in printed
