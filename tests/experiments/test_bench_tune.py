"""Tuning keeps the fastest candidate of each shape and batch, in a file that kernels can read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from codecjax.tiles import TiledMatrix
from experiments import bench_tune
from experiments.bench_settings import Settings
from experiments.bench_tune import Kernels, Trial, tune
from experiments.timing import Repeated, Timing
from kernels_pallas import tuning


@dataclasses.dataclass(frozen=True)
class Config:
    """A candidate: how often the work is done over."""

    splits: int


def kernels() -> Kernels:
    def matmul(x: jax.Array, t: TiledMatrix, config: Config) -> jax.Array:
        if config.splits > 16:
            raise ValueError("no shared memory\n for that")
        return x[:, :1] * config.splits

    def decode(t: TiledMatrix, config: Config) -> jax.Array:
        return jnp.zeros(1) + config.splits

    return Kernels(
        lambda down, across, batch: [Config(each) for each in (8, 2, 32)],
        matmul,
        lambda down, across: [Config(each) for each in (3, 5)],
        decode,
    )


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Trial]]:
    """What tuning a small shape wrote and tried; a candidate takes as long as it says."""
    monkeypatch.setattr(Repeated, "time", lambda self, repeats: Timing(splits_of(self), 0.01))
    output = tmp_path / "device.json"
    output.write_text(json.dumps({"matmul": {"1x1": {"64": {"splits": 7}}}}))
    settings = Settings(("odd.wide",), (1, 16, 500), "mosaic_gpu", False, 1e12, lambda text: None)
    return output, tune(("matmul", "decode"), settings, kernels(), output, "A device")


def splits_of(call: Repeated) -> float:
    """Seconds of a fake kernel: the number that it was traced with."""
    (output, *_) = call()
    return float(output[0] if output.ndim == 1 else jnp.abs(output[0, 0] / call.carried[0, 0]))


def test_the_fastest_are_kept_beside_what_was_there(tuned: tuple[Path, list[Trial]]) -> None:
    content = json.loads(tuned[0].read_text())
    shape = tuning.shape_key(4, 8)
    assert content["matmul"] == {
        "1x1": {"64": {"splits": 7}},
        shape: {"8": {"splits": 2}, "16": {"splits": 2}},
    }
    assert content["decode"] == {shape: {"splits": 3}}
    assert content["device"] == "A device"
    assert tuning.check(content, tuned[0])["matmul", shape, 16] == {"splits": 2}


def test_refused_candidates_are_told_and_not_kept(tuned: tuple[Path, list[Trial]]) -> None:
    refused = [trial for trial in tuned[1] if trial.refusal]
    assert {trial.config for trial in refused} == {Config(32)}
    assert not any(trial.fastest for trial in refused)
    console = Console(width=200, record=True)
    console.print(bench_tune.table(tuned[1]))
    text = console.export_text()
    assert "no shared memory for that" in text
    assert text.count("kept") == 1 + 3


def test_batches_above_every_bucket_are_left_out(tuned: tuple[Path, list[Trial]]) -> None:
    assert {trial.batch for trial in tuned[1] if trial.op == "matmul"} == {1, 16}


def test_a_damaged_file_is_not_written_over(tmp_path: Path) -> None:
    output = tmp_path / "device.json"
    output.write_text('{"matmul": {"1x1": {"9": {"splits": 7}}}}')
    settings: Any = Settings(("odd.wide",), (1,), "mosaic_gpu", False, 1e12, lambda text: None)
    with pytest.raises(ValueError, match="'9'"):
        tune(("decode",), settings, kernels(), output, "A device")
    assert "9" in output.read_text()
