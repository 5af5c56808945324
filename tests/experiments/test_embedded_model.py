"""The committed embedded model: its size, what its card says of it, and what it writes."""

import ast
import io
import re
import tokenize
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import codecjax
from codecjax.io.huggingface import HuggingFaceFolder, read_folder
from codecjax.models.parameters import parameters, to_tree
from experiments.bits_per_byte import bits_per_byte
from experiments.stdlib_corpus import read_corpus
from experiments.train_embedded import CONFIG, separator_of

EMBEDDED = Path(__file__).resolve().parents[2] / "experiments" / "embedded_model"
NEW_TOKENS = 96


@pytest.fixture(scope="module")
def folder() -> HuggingFaceFolder:
    return read_folder(EMBEDDED)


def statements(text: str) -> list[ast.stmt]:
    """The statements of the longest run of whole lines from the start that Python can parse."""
    lines = text.splitlines()
    for count in range(len(lines), 0, -1):
        try:
            return ast.parse("\n".join(lines[:count])).body
        except SyntaxError:
            continue
    return []


def words(text: str) -> list[str]:
    """The names, numbers and operators of source text that may break off anywhere."""
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP):
                found.append(token.string)
    except (tokenize.TokenError, IndentationError):
        pass
    return found


def test_folder_is_small_and_the_model_is_not(folder: HuggingFaceFolder) -> None:
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 8 * 10**6
    assert {file.name for file in EMBEDDED.iterdir()} >= {
        "README.md",
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert folder.config.hidden_size >= 256
    assert folder.config.layers >= 4
    assert {weight.dtype for weight in folder.weights.values()} == {np.dtype(ml_dtypes.bfloat16)}
    # The program makes this very model.
    assert folder.config == CONFIG


def test_any_text_survives_the_tokenizer(folder: HuggingFaceFolder) -> None:
    assert folder.tokenizer is not None
    assert folder.tokenizer.get_vocab_size() == folder.config.vocab_size
    text = "def f(x):\n\treturn 'äöü → 🐍' + x\r\n\0"
    assert folder.tokenizer.decode(folder.tokenizer.encode(text).ids) == text


def test_held_out_modules_cost_what_the_card_says(folder: HuggingFaceFolder) -> None:
    card = (EMBEDDED / "README.md").read_text()
    said = re.search(r"\*\*([\d.]+) bits per byte\*\*", card)
    assert said is not None
    held_out = read_corpus().held_out
    # Two modules that are neither easier nor harder to compress than the rest.
    texts = {name: held_out[name] for name in ("csv.py", "graphlib.py")}
    assert folder.tokenizer is not None
    separator = separator_of(folder.tokenizer)
    weights = {name: jnp.asarray(weight) for name, weight in folder.weights.items()}
    tree = to_tree(folder.config, weights)
    bits = bits_per_byte(folder.config, tree, folder.tokenizer, texts, separator)
    assert bits == pytest.approx(float(said[1]), rel=0.1)
    # An order-0 model of bytes needs over 4 bits.
    assert bits < 2


@pytest.mark.parametrize("prompt", ["def _check(", "def __init__(self, "])
def test_greedy_generation_looks_like_python(prompt: str) -> None:
    model = codecjax.load(EMBEDDED, codec="window")
    assert model.tokenizer is not None
    tokens = list(codecjax.generate(model, prompt, max_new_tokens=NEW_TOKENS))
    text = prompt + model.tokenizer.decode(tokens)
    (first, *_) = statements(text)
    assert isinstance(first, ast.FunctionDef), text
    assert {"(", ")", ":"} <= set(words(text)), text
    assert {"self", "return", "if", "def"} & set(words(text)), text


def test_noise_does_not_look_like_python(folder: HuggingFaceFolder) -> None:
    """What an untrained model writes does not pass for what the trained one must write."""
    assert folder.tokenizer is not None
    noise = np.random.default_rng(0).integers(1, folder.config.vocab_size, (8, NEW_TOKENS))
    for ids in noise.tolist():
        assert not statements("def _check(" + folder.tokenizer.decode(ids))


def test_weights_have_the_statistics_of_trained_ones(folder: HuggingFaceFolder) -> None:
    """Exponents concentrate: it is what the window codec compresses."""
    for parameter in parameters(folder.config):
        if not parameter.projection:
            continue
        weight = folder.weights[parameter.huggingface].astype(np.float32)
        assert np.isfinite(weight).all()
        exponents = np.frexp(weight[weight != 0])[1]
        _, counts = np.unique(exponents, return_counts=True)
        assert np.sort(counts)[-7:].sum() / counts.sum() > 0.9
