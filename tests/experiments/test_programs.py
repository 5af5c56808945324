"""The small programs: info, generate and compress."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

import codecjax
from codecjax.io.huggingface import read_folder, write_folder
from codecjax.models.parameters import parameters
from experiments import info
from experiments.generate import text_stream
from experiments.shapes import SHAPES
from kernels_pallas.arg_specs import gaussian_weight

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "experiments" / "embedded_model"
GOLDEN = ROOT / "tests" / "golden" / "gqa_untied"


def program(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)


def test_info_says_what_can_run_and_why_not() -> None:
    text = "\n".join(info.lines())
    assert f"jax {jax.__version__}" in text
    assert f"device 0: {jax.devices()[0].device_kind}" in text
    assert "implementation xla: can run here" in text
    if jax.default_backend() == "cpu":
        assert "implementation xla: can run here (the default)" in text
        assert "implementation mosaic_gpu: cannot run here: it needs an NVIDIA Hopper GPU" in text


def test_text_comes_in_whole_characters() -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    complete = text_stream(tokenizer)
    pieces = [complete(token) for token in tokenizer.encode("a\u20acb").ids]
    assert pieces == ["a", "", "", "\u20ac", "b"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A compressed golden model, and what the program said while making it."""
    output = tmp_path_factory.mktemp("compress") / "model"
    done = program("compress", f"--model={GOLDEN}", f"--output={output}", "--width=8")
    return output, done.stdout


def test_compress_writes_a_checkpoint_and_a_table(checkpoint: tuple[Path, str]) -> None:
    output, printed = checkpoint
    assert output.is_dir()
    assert "encodes tensors" in printed
    assert "attention.query" in printed
    assert "embedding (not compressed)" in printed
    assert re.search(r"total .* 16\.00 .* 100\.0 %", printed)


def test_compress_has_every_codec_and_its_options(tmp_path: Path) -> None:
    shapes = tmp_path / "model"
    config = SHAPES["tiny"]
    weights = {
        each.huggingface: gaussian_weight(*(*each.shape, 1)[:2], seed=0).reshape(each.shape)
        for each in parameters(config)
    }
    write_folder(shapes, config, weights)
    done = program(
        "compress",
        f"--model={shapes}",
        f"--output={tmp_path / 'checkpoint'}",
        "--codec=rans",
        "--probability_bits=10",
        "--tile_rows=64",
        "--tile_columns=128",
    )
    assert "encodes tensors" in done.stdout
    assert re.search(r"mlp\.up  ", done.stdout)
    assert "embedding (codec window)" in done.stdout
    model = codecjax.load(tmp_path / "checkpoint")
    assert (model.codec, model.options) == ("rans", {"probability_bits": 10})
    weight = np.asarray(weights["model.layers.0.mlp.up_proj.weight"]).view(np.uint16)
    decoded = np.asarray(codecjax.decode(model.matrices["layers.0.mlp.up"])).view(np.uint16)
    np.testing.assert_array_equal(decoded, weight)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model with a tokenizer of single bytes."""
    golden = read_folder(GOLDEN)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    symbols = {symbol: i for i, symbol in enumerate(alphabet[: golden.config.vocab_size])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(symbols, []))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    write_folder(tmp_path / "model", golden.config, golden.weights, tokenizer)
    return tmp_path / "model"


def test_compress_calibrates_on_a_text(tmp_path: Path, folder: Path) -> None:
    text, output = tmp_path / "text", tmp_path / "checkpoint"
    text.write_text("import_this" * 400)
    options = ["--codec=ecsq", "--bits_per_weight=4", f"--calibration={text}"]
    done = program("compress", f"--model={folder}", f"--output={output}", *options)
    assert f"runs the model on {text}" in done.stdout.replace("\n", "")
    calibrated = codecjax.load(output)
    assert calibrated.bits_per_weight == pytest.approx(4, rel=0.03)
    plain = codecjax.load(folder, codec="ecsq", bits_per_weight=4.0)
    for name, t in plain.matrices.items():
        assert (codecjax.decode(t) != codecjax.decode(calibrated.matrices[name])).any()


def test_generate_goes_on_from_a_prompt(folder: Path) -> None:
    model = f"--model={folder}"
    text = program("generate", model, "--prompt=ab", "--max_new_tokens=4").stdout
    assert text.startswith("ab")
    assert len(text.strip()) > 2
