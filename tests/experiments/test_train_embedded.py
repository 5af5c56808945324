"""Training learns, twice the same; bits per byte count every token once."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.errors import UserError
from codecjax.io.huggingface import read_folder
from codecjax.models.parameters import parameters, to_tree
from experiments import train_embedded
from experiments.bits_per_byte import bits_per_byte, token_ids, windows
from experiments.stdlib_corpus import Corpus, read_corpus
from experiments.train_embedded import CONFIG, END, Recipe

TINY = dataclasses.replace(
    CONFIG,
    vocab_size=300,
    hidden_size=64,
    intermediate_size=128,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=32,
    context=32,
)
SHORT = Recipe(steps=40, batch=4, learning_rate=1e-2, report_every=20)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    whole = read_corpus()
    keep = {"train": ("abc.py", "bdb.py"), "validation": ("cmd.py",), "held_out": ("bisect.py",)}
    parts = {
        part: {name: getattr(whole, part)[name] for name in names} for part, names in keep.items()
    }
    return Corpus(**parts)


def test_training_learns_and_writes_a_model_with_its_card(tmp_path: Path, corpus: Corpus) -> None:
    bits = train_embedded.train_and_write(tmp_path / "model", TINY, SHORT, corpus)
    # A model that knows nothing needs about log2(300) bits a token, over 3 bits a byte.
    assert 0 < bits < 6
    found = read_folder(tmp_path / "model")
    assert found.config.vocab_size == 300
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"**{bits:.3f} bits per byte**" in card
    assert corpus.sha256 in card


def test_same_seed_same_weights(corpus: Corpus) -> None:
    tokenizer = train_embedded.train_tokenizer(list(corpus.train.values()), TINY.vocab_size)
    separator = tokenizer.token_to_id(END)
    assert separator is not None
    ids = token_ids(tokenizer, corpus.train.values(), separator)
    runs = [train_embedded.train(TINY, SHORT, ids, ids) for _ in range(2)]
    for name, weight in runs[0].weights.items():
        np.testing.assert_array_equal(
            weight.view(np.uint16), runs[1].weights[name].view(np.uint16), err_msg=name
        )
    other = train_embedded.train(TINY, dataclasses.replace(SHORT, seed=1), ids, ids)
    assert not np.array_equal(other.weights["lm_head.weight"], runs[0].weights["lm_head.weight"])
    assert runs[0].losses[-1] < runs[0].losses[0] < np.log(TINY.vocab_size)


@pytest.mark.parametrize("count", [2, 20, 33, 64, 100])
def test_windows_count_every_token_once(count: int) -> None:
    ids = np.arange(count, dtype=np.int32)
    tokens, counts = windows(ids, 32)
    predicted = tokens[:, 1:][counts]
    np.testing.assert_array_equal(np.sort(predicted), ids[1:])


def test_bits_per_byte_of_a_model_that_knows_nothing(corpus: Corpus) -> None:
    tokenizer = train_embedded.train_tokenizer(list(corpus.train.values()), TINY.vocab_size)
    zeros = {each.huggingface: jnp.zeros(each.shape) for each in parameters(TINY)}
    text = "def f(x):\n    return x\n"
    bits = bits_per_byte(TINY, to_tree(TINY, zeros), tokenizer, {"f.py": text}, 0)
    tokens = len(tokenizer.encode(text).ids)
    assert bits == pytest.approx(tokens * np.log2(TINY.vocab_size) / len(text), rel=1e-5)


def test_folders_that_are_no_embedded_model_are_refused(tmp_path: Path) -> None:
    golden = Path(__file__).parent.parent / "golden" / "mha_tied"
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        train_embedded.evaluate(golden, None)
    with pytest.raises(UserError, match="does not exist"):
        train_embedded.evaluate(tmp_path / "nothing", None)


def test_initial_weights_follow_the_seed() -> None:
    one, same, other = (train_embedded.initial_weights(TINY, seed) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, one, same))
    assert not jnp.array_equal(one["embedding"], other["embedding"])


def test_impossible_recipes_are_refused() -> None:
    ids = np.arange(200, dtype=np.int32) % TINY.vocab_size
    for steps in (0, 30):
        with pytest.raises(UserError, match=f"steps is {steps}, .* give a multiple of 20"):
            train_embedded.train(TINY, dataclasses.replace(SHORT, steps=steps), ids, ids)
    with pytest.raises(UserError, match="never finite: give a lower learning_rate"):
        train_embedded.train(TINY, dataclasses.replace(SHORT, learning_rate=1e30), ids, ids)
