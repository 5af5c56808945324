"""What lossy codecs cost in quality, on the embedded model and one held-out module."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.errors import UserError
from codecjax.io.huggingface import HuggingFaceFolder, read_folder
from codecjax.models.parameters import to_tree
from experiments import quality
from experiments.bits_per_byte import bits_per_byte
from experiments.calibration_text import tokens_of_file, training_tokens
from experiments.quality import measure, rows_of
from experiments.round_to_nearest import BASELINES, asymmetric, symmetric
from experiments.stdlib_corpus import read_corpus
from experiments.train_embedded import separator_of
from kernels_pallas.arg_specs import gaussian_weight

EMBEDDED = Path(__file__).resolve().parents[2] / "experiments" / "embedded_model"
MODULE = "sched.py"


@pytest.fixture(scope="module")
def folder() -> HuggingFaceFolder:
    return read_folder(EMBEDDED)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {MODULE: read_corpus().held_out[MODULE]}


@pytest.fixture(scope="module")
def rows(folder: HuggingFaceFolder, texts: dict[str, str]) -> dict[str, dict[str, Any]]:
    tokens = training_tokens(read_corpus(), folder)[::32]
    found = rows_of(
        folder,
        [4.125, 4.25],
        BASELINES,
        (128, 256),
        texts,
        calibrated_rates=[4.125],
        calibration=tokens,
    )
    return {row["name"]: row for row in found}


def test_bf16_diverges_from_itself_by_nothing(
    rows: dict[str, dict[str, Any]], folder: HuggingFaceFolder, texts: dict[str, str]
) -> None:
    bf16 = rows["bf16"]
    assert (bf16["divergence"], bf16["agreement"]) == (pytest.approx(0, abs=1e-9), 1.0)
    weights = {name: jnp.asarray(weight) for name, weight in folder.weights.items()}
    assert folder.tokenizer is not None
    separator = separator_of(folder.tokenizer)
    tree = to_tree(folder.config, weights)
    expected = bits_per_byte(folder.config, tree, folder.tokenizer, texts, separator)
    assert bf16["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    bits = math.log2(bf16["perplexity"]) * bf16["tokens"]
    assert bits / len(texts[MODULE].encode()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("ecsq 4.125", "int4, groups of 128"),
        ("ecsq 4.25", "int4 with minimum, groups of 128"),
    ],
)
def test_ecsq_is_nearer_to_bf16_than_rounding_to_nearest_at_the_same_bits(
    rows: dict[str, dict[str, Any]], ours: str, theirs: str
) -> None:
    assert rows[ours]["bits_per_weight"] == pytest.approx(rows[theirs]["bits_per_weight"], rel=0.02)
    assert rows[ours]["divergence"] < 0.85 * rows[theirs]["divergence"]
    assert rows[ours]["mse"] < 0.7 * rows[theirs]["mse"]


def test_calibration_brings_ecsq_nearer_to_bf16_at_the_same_bits(
    rows: dict[str, dict[str, Any]],
) -> None:
    plain, calibrated = rows["ecsq 4.125"], rows["ecsq 4.125, calibrated"]
    assert calibrated["bits_per_weight"] == pytest.approx(plain["bits_per_weight"], rel=0.01)
    assert calibrated["divergence"] < 0.85 * plain["divergence"]
    # Not the weights are nearer, what they make of inputs is.
    assert calibrated["mse"] > plain["mse"]


def test_calibration_texts_that_cannot_be_read_are_named(
    folder: HuggingFaceFolder, tmp_path: Path
) -> None:
    broken = tmp_path / "text"
    broken.write_bytes(b"\xff\xfe\xff")
    for path in (broken, tmp_path / "none"):
        with pytest.raises(UserError, match=f"--calibration {path} cannot be read .*: give a text"):
            tokens_of_file(str(path), folder)
    broken.write_text("")
    with pytest.raises(UserError, match="no tokens"):
        tokens_of_file(str(broken), folder)
    nameless = dataclasses.replace(folder, tokenizer=None)
    with pytest.raises(UserError, match=r"no tokenizer.json: --calibration cannot be read"):
        tokens_of_file(str(broken), nameless)


def test_divergence_is_what_the_definition_says(
    folder: HuggingFaceFolder, texts: dict[str, str]
) -> None:
    """A head of zeros predicts every token alike: KL(p || uniform) = log V - H(p)."""
    head = {"lm_head.weight": jnp.zeros_like(jnp.asarray(folder.weights["lm_head.weight"]))}
    found = measure(folder, {"bf16": {}, "uniform": head}, texts)
    vocabulary = folder.config.vocab_size
    assert found["uniform"].perplexity == pytest.approx(vocabulary, rel=1e-5)
    assert found["uniform"].divergence < math.log(vocabulary)
    # The entropy of a good model's predictions is about its own loss.
    entropy = math.log(vocabulary) - found["uniform"].divergence
    assert entropy == pytest.approx(math.log(found["bf16"].perplexity), rel=0.25)


def test_rounding_to_nearest_is_within_half_a_step() -> None:
    w = gaussian_weight(64, 256, 0)
    wide = np.asarray(w, np.float64).reshape(64, 2, 128)
    error = np.abs(wide - np.asarray(symmetric(w, 4, 128).weights, np.float64).reshape(wide.shape))
    steps = np.abs(wide).max(axis=-1, keepdims=True) / 7
    assert (error <= 0.53 * steps).all()
    assert symmetric(w, 4, 128).bits_per_weight == 4.125
    error = np.abs(wide - np.asarray(asymmetric(w, 4, 128).weights, np.float64).reshape(wide.shape))
    steps = np.ptp(wide, axis=-1, keepdims=True) / 15
    assert (error <= 0.55 * steps).all()
    assert asymmetric(w, 4, 128).bits_per_weight == 4.25


def test_rows_without_whole_groups_are_refused() -> None:
    with pytest.raises(UserError, match="rows of 100 weights have no groups of 128"):
        symmetric(gaussian_weight(4, 100, 0), 4, 128)


def test_table_has_a_line_for_each_way(rows: dict[str, dict[str, Any]]) -> None:
    assert quality.table(list(rows.values())).row_count == 1 + len(BASELINES) + 3
