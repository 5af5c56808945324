"""Bad input to the programs: one sentence that names the thing and the remedy, status 2."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fork_commands import ROOT, run_commands

GOLDEN = ROOT / "tests" / "golden" / "gqa_untied"
TINY = ("--config=configs/base.py", "--config.model.path=", "--config.model.shapes=tiny")
PROMPTLESS = "--config.run.prompt="


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of damaged models, "good" among them."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("good", "truncated", "flipped", "another architecture"):
        shutil.copytree(GOLDEN, folder / name)
    weights = (GOLDEN / "model.safetensors").read_bytes()
    (folder / "truncated" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    header = bytearray(weights)
    header[20] ^= 0xFF
    (folder / "flipped" / "model.safetensors").write_bytes(header)
    config = json.loads((GOLDEN / "config.json").read_text())
    config["architectures"] = ["GPT2LMHeadModel"]
    (folder / "another architecture" / "config.json").write_text(json.dumps(config))
    (folder / "a file").write_text("")
    return folder


def check(result: dict[str, Any], words: list[str]) -> None:
    assert result["status"] == 2, result
    sentence = result["stderr"].strip()
    assert sentence.startswith("error: ")
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert all(word in sentence for word in words), sentence


RUNS: dict[str, tuple[list[str], list[str]]] = {
    "no config": ([], ["no config", "--config="]),
    "missing config": (["--config=configs/nothing.py"], ["configs/nothing.py", "does not exist"]),
    "unknown field": ([*TINY, "--config.cache.bugdet=1"], ["cache.bugdet", "configs/base.py"]),
    "wrong type": ([*TINY, "--config.run.new_tokens=many"], ["new_tokens"]),
    "unknown flag": ([*TINY, "--colour=red"], ["colour", "--helpfull"]),
    "stray argument": ([*TINY, "cache.policy=lru"], ["cache.policy=lru", "--config.FIELD"]),
    "unknown policy": ([*TINY, "--config.cache.policy=mru"], ["'mru'", "pinned"]),
    "unknown codec": ([*TINY, "--config.codec.name=zip"], ["'zip'", "window"]),
    "negative budget": ([*TINY, "--config.cache.budget_bytes=-1"], ["-1", "0 or more"]),
    "less than a page": ([*TINY, "--config.cache.budget_bytes=999"], ["999", "131072"]),
    "share of a page": (
        [*TINY, PROMPTLESS, "--config.cache.budget_fraction=0.001"],
        ["0.001", "at least"],
    ),
    "beyond the context": (
        [*TINY, PROMPTLESS, "--config.run.new_tokens=1000"],
        ["1000", "context of 128", "at most 120"],
    ),
    "text without tokenizer": ([*TINY], ["no tokenizer", "run.prompt"]),
    "cannot run here": (
        [*TINY, PROMPTLESS, "--config.run.implementation=mosaic_gpu"],
        ["mosaic_gpu", "cannot run here", "GPU"],
    ),
    "missing model": ([TINY[0], "--config.model.path=no/model"], ["no/model", "does not exist"]),
    "truncated": ([TINY[0], "--config.model.path=truncated"], ["model.safetensors"]),
    "flipped": ([TINY[0], "--config.model.path=flipped"], ["model.safetensors"]),
    "architecture": (
        [TINY[0], "--config.model.path=another architecture"],
        ["GPT2LMHeadModel", "LlamaForCausalLM"],
    ),
}


@pytest.fixture(scope="module")
def runs(models: Path) -> dict[str, dict[str, Any]]:
    cases = [
        [each.replace("configs/", f"{ROOT}/configs/", 1) for each in arguments]
        for arguments, _ in RUNS.values()
    ]
    results = run_commands("experiments.run", cases, models)
    return dict(zip(RUNS, results, strict=True))


@pytest.mark.parametrize("case", RUNS)
def test_run(case: str, runs: dict[str, dict[str, Any]], models: Path) -> None:
    check(runs[case], RUNS[case][1])
    assert not (models / "runs").exists()


GENERATE: dict[str, tuple[list[str], list[str]]] = {
    "no model": (["--prompt=x"], ["--model"]),
    "no prompt": (["--model=good"], ["--prompt"]),
    "missing model": (["--model=no/model", "--prompt=x"], ["no/model", "does not exist"]),
    "unknown codec": (["--model=good", "--prompt=x", "--codec=zip"], ["'zip'", "window"]),
    "no tokenizer": (["--model=good", "--prompt=x"], ["tokenizer"]),
}
COMPRESS: dict[str, tuple[list[str], list[str]]] = {
    "no model": (["--output=x"], ["--model"]),
    "no output": (["--model=good"], ["--output"]),
    "bad tile": (["--model=good", "--output=x", "--tile_rows=100"], ["100x256", "64x128"]),
    "bad width": (["--model=good", "--output=x", "--width=9"], ["width 9", "11"]),
    "bad bits": (
        ["--model=good", "--output=x", "--codec=rans", "--probability_bits=9"],
        ["probability_bits 9", "10, 11, 12"],
    ),
    "bad prediction": (
        ["--model=good", "--output=x", "--codec=int8_rans", "--prediction=paeth"],
        ["prediction 'paeth'", "planar, best"],
    ),
    "another codec's option": (
        ["--model=good", "--output=x", "--codec=rans", "--width=8"],
        ["'rans'", "'width'", "probability_bits"],
    ),
    "no importance": (
        ["--model=good", "--output=x", "--calibration=text"],
        ["'window'", "importance", "ecsq"],
    ),
    "no calibration text": (
        ["--model=good", "--output=x", "--codec=ecsq", "--calibration=no text"],
        ["tokenizer.json"],
    ),
    "missing model": (["--model=no/model", "--output=x"], ["no/model", "does not exist"]),
    "output in the way": (["--model=good", "--output=a file"], ["a file", "not a folder"]),
}
REPORT: dict[str, tuple[list[str], list[str]]] = {
    "no folder": ([], ["--workdir"]),
    "not a run": (["--workdir=good"], ["good", "sweep.json"]),
}
INFO: dict[str, tuple[list[str], list[str]]] = {"stray argument": (["x"], ["'x'"])}


@pytest.mark.parametrize(
    ("module", "cases"),
    [("generate", GENERATE), ("compress", COMPRESS), ("report", REPORT), ("info", INFO)],
)
def test_the_other_programs(
    module: str, cases: dict[str, tuple[list[str], list[str]]], models: Path
) -> None:
    arguments = [arguments for arguments, _ in cases.values()]
    results = run_commands(f"experiments.{module}", arguments, models)
    for result, (_, words) in zip(results, cases.values(), strict=True):
        check(result, words)
    assert not (models / "x").exists()
