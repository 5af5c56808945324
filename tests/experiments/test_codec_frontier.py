"""The codec frontier from end to end, on a model of one layer."""

import importlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from ml_collections.config_dict import ConfigDict

import kernels_pallas
from codecjax.errors import UserError
from codecjax.io.huggingface import write_folder
from codecjax.models.config import LlamaConfig
from codecjax.models.parameters import parameters
from configs import codec_frontier as config_file
from experiments import run
from experiments.codec_frontier import check, check_same_model, of_points, without_kernel
from experiments.configuration import load_module, resolve_points
from experiments.stdlib_corpus import read_corpus
from kernels_pallas import arguments

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "codec_frontier.py"
MODEL = LlamaConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=128,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=32,
    context=64,
    rms_eps=1e-5,
)
SWEEP = '''
"""Two codecs."""
from configs.codec_frontier import get_config

def get_sweep():
    return [
        {"name": "bf16", "codec.name": "bf16", "cache.budget_fraction": 0.0},
        {"name": "window", "cache.budget_fraction": 0.0},
    ]
'''


def config_of(**fields: Any) -> ConfigDict:
    config = config_file.get_config()
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model that reads as the embedded one does."""
    draw = np.random.default_rng(0)
    weights = {
        each.huggingface: np.asarray(0.05 * draw.normal(size=each.shape), jnp.bfloat16)
        for each in parameters(MODEL)
    }
    tokenizer = ROOT / "experiments" / "embedded_model" / "tokenizer.json"
    path = tmp_path / "model"
    write_folder(path, MODEL, weights, tokenizers.Tokenizer.from_file(str(tokenizer)))
    return path


def test_the_usual_program_runs_it_and_goes_on_where_it_stopped(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = read_corpus()
    monkeypatch.setattr("experiments.codec_quality.read_corpus", lambda: corpus)
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP)
    overrides = {
        "model.path": str(folder),
        "codec.tile_rows": 64,
        "codec.tile_columns": 128,
        "run.new_tokens": 3,
        "run.prompt": "",
        "run.prompt_tokens": 2,
        "run.check_exactness": False,
        "quality.characters": 60,
    }
    config, workdir = config_of(**overrides), tmp_path / "records"
    assert run.run(file, config, overrides, workdir) == 0
    record = json.loads((workdir / "frontier.json").read_text())
    bf16, window = record["rows"]
    assert (bf16["stored_bits"], bf16["held_bits"]) == (16.0, 16.0)
    assert (window["perplexity"], window["divergence"]) == (bf16["perplexity"], 0.0)
    assert window["stored_bits"] < window["held_bits"] < 16
    assert window["fronts"] == ["speed", "memory", "perplexity", "divergence"]
    assert set(bf16["fronts"]) <= {"speed", "memory"}
    assert record["config"]["quality"]["characters"] == 60
    assert set(record["environment"]["implementations"].values()) == {"xla"}
    assert (record["left_out"], record["failed"]) == ({}, {})
    assert (workdir / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = (workdir / "report.md").read_text()
    assert "1 of 1 other lossless codecs have the perplexity of bf16" in page
    capsys.readouterr()

    more = {**overrides, "quality.characters": 61}
    (workdir / "quality" / "bf16.json").write_text(
        (workdir / "quality" / "window-11.json").read_text()
    )
    assert run.run(file, config_of(**overrides), overrides, workdir) == 0
    printed = capsys.readouterr().out
    assert printed.count("done before, skipped") == 2
    assert "[window 11] quality measured before, skipped" in printed
    assert "[bf16] measures the quality" in printed
    assert json.loads((workdir / "frontier.json").read_text())["rows"] == record["rows"]
    # Another text is another question, of the same points.
    assert run.run(file, config_of(**more), more, workdir) == 0
    printed = capsys.readouterr().out
    assert printed.count("done before, skipped") == 2
    assert printed.count("measures the quality") == 2

    # Cut off within a point, it can be reported; and where nothing is finished, it cannot.
    (workdir / "points" / "window" / "summary.json").unlink()
    assert run.run(file, config_of(**overrides), overrides, workdir, report_only=True) == 0
    partial = json.loads((workdir / "frontier.json").read_text())
    assert [row["name"] for row in partial["rows"]] == ["bf16"]
    assert partial["left_out"] == {"window": "it has not run"}
    ran = json.loads((workdir / "points" / "bf16" / "environment.json").read_text())
    assert partial["environment"] == ran
    (workdir / "points" / "bf16" / "summary.json").unlink()
    with pytest.raises(UserError, match=r"holds no finished point .* without --report_only"):
        run.run(file, config_of(**overrides), overrides, workdir, report_only=True)


def test_codecs_without_kernels_are_left_out_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_pallas, "resolve", lambda _: "mosaic_gpu")
    monkeypatch.setattr(arguments, "_WITH_KERNELS", ("bf16", "rans", "window"))
    kept, overrides = of_points(config_file.get_config(), {})
    points = resolve_points(kept, load_module(FILE).sweep, overrides)
    why = {point.name: without_kernel(point) for point in points}
    runs = {name.split(",")[0] for name, reason in why.items() if reason is None}
    assert runs == {"bf16", "window 8", "window 11", "window 16", "rans"}
    assert len(points) == 21
    assert why["int8_rans, 0 % kept"] is not None
    assert "no kernel for codec 'int8_rans'" in why["int8_rans, 0 % kept"]
    assert all(point.error is None for point in points if why[point.name] is None)


def test_left_out_points_are_in_the_record_and_do_not_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("experiments.codec_frontier")
    reason = "implementation 'mosaic_gpu' has no kernel for codec 'window'"
    monkeypatch.setattr(
        module, "without_kernel", lambda point: reason if point.name != "bf16" else None
    )
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP)
    overrides = {
        "model.path": "",
        "model.shapes": "tiny",
        "codec.tile_rows": 64,
        "codec.tile_columns": 128,
        "run.new_tokens": 2,
        "run.prompt": "",
        "run.check_exactness": False,
        "quality.measure": False,
    }
    assert run.run(file, config_of(**overrides), overrides, tmp_path / "records") == 0
    record = json.loads((tmp_path / "records" / "frontier.json").read_text())
    assert record["left_out"] == {"window": reason}
    assert [row["name"] for row in record["rows"]] == ["bf16"]
    assert record["rows"][0]["perplexity"] is None
    assert f"[window] LEFT OUT: {reason}" in capsys.readouterr().out
    assert f"- Left out: window: {reason}." in (tmp_path / "records" / "report.md").read_text()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"run.new_tokens": 1}, "new_tokens 1 shows no speed"),
        ({"model.path": ""}, "set quality.measure to false"),
        ({"quality.characters": 0}, "quality.characters 0 leaves no text"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(config_of(**fields))


def test_points_of_different_tiles_are_not_compared() -> None:
    kept, overrides = of_points(config_file.get_config(), {"quality.measure": False})
    assert overrides == {}
    sweep = [{"name": "a", "codec.tile_rows": 64}, {"name": "b", "codec.tile_rows": 128}]
    with pytest.raises(UserError, match="different models or tiles"):
        check_same_model(resolve_points(kept, sweep, overrides))
