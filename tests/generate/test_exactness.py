"""Generation under a cache has the bits of plain bf16."""

import dataclasses

import numpy as np
import pytest

import codecjax
from codecjax.codecs import is_lossy
from codecjax.models.encoding import encode_weights
from codecjax.models.parameters import walk
from codecjax.models.random_weights import random_model
from codecjax.tiles import TiledMatrix
from tests.generate.small_model import CONFIG, PAGE, POOL, PROMPT, TILE, RandomPlans, bits, make


def decoded(model):
    """The model with its decoded weights in plain bf16."""
    weights = {
        each.huggingface: codecjax.decode(weight) if isinstance(weight, TiledMatrix) else weight
        for each, weight in walk(model.config, model.parameters)
    }
    return encode_weights(model.config, weights, "bf16", TILE, {})


@pytest.mark.parametrize(
    ("name", "seed"),
    [("window8", 8), ("window11", 11), ("window16", 16), ("rans", 1), ("int8_rans", 2)],
)
def test_compressed_logits_are_bit_equal_to_plain_ones(models, name, seed):
    compressed = models[name]
    # What a lossy codec stores has other weights than were encoded, but the same ones always.
    plain = decoded(compressed) if is_lossy(compressed.codec) else models["bf16"]
    assert all(t.is_dense for t in plain.matrices.values())
    assert not any(t.is_dense for t in compressed.matrices.values())
    expected = list(make(plain).run(PROMPT, 12, keep_logits=True))
    generator = make(compressed, budget_bytes=POOL * PAGE)
    generator._controller = RandomPlans(compressed.tile_count, seed=seed)
    pages_read = 0
    for step, wanted in zip(generator.run(PROMPT, 12, keep_logits=True), expected, strict=True):
        assert step.token == wanted.token
        np.testing.assert_array_equal(bits(step.logits), bits(wanted.logits))
        pages_read += step.plan.hits
    assert pages_read > 12
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 11))
    np.testing.assert_array_equal(
        bits(codecjax.logits(compressed, tokens, implementation="xla")),
        bits(codecjax.logits(plain, tokens, implementation="xla")),
    )


@pytest.mark.parametrize("codec", ["window", "rans"])
def test_a_tied_embedding_is_looked_up_and_multiplied_by(codec):
    """Of one stored matrix, whose tiles may be resident, the bits are those of the plain model."""
    tied = dataclasses.replace(CONFIG, tied=True)
    options = {"rans": {"probability_bits": 10}}.get(codec, {})
    compressed, plain = (
        random_model(tied, 0, name, TILE, chosen)
        for name, chosen in ((codec, options), ("bf16", {}))
    )
    generator = make(compressed, budget_bytes=POOL * PAGE)
    generator._controller = RandomPlans(compressed.tile_count, seed=3)
    first, read = compressed.first_tiles["embedding"], 0
    expected = make(plain).run(PROMPT, 8, keep_logits=True)
    for step, wanted in zip(generator.run(PROMPT, 8, keep_logits=True), expected, strict=True):
        np.testing.assert_array_equal(bits(step.logits), bits(wanted.logits))
        read += int((step.plan.page_table[first:] >= 0).sum())
    assert read > 0


def test_bfloat16_activations_are_bit_equal_too(models):
    runs = [
        list(make(models[name], activations="bfloat16").run(PROMPT, 3, keep_logits=True))
        for name in ("bf16", "window11")
    ]
    for plain, compressed in zip(*runs, strict=True):
        np.testing.assert_array_equal(bits(plain.logits), bits(compressed.logits))
    exact = next(make(models["bf16"]).run(PROMPT, 1, keep_logits=True))
    assert 0 < np.abs(runs[0][0].logits - exact.logits).max() < 0.1


def whole_logits(model, tokens):
    """Of one sequence in one pass, padded behind where nothing looks."""
    padded = np.pad(tokens, (0, CONFIG.context - len(tokens)))
    return np.asarray(codecjax.logits(model, [padded], implementation="xla"))[0]


@pytest.mark.parametrize("length", [1, 8, 9, 44])
def test_steps_compute_the_logits_of_whole_sequences(model, length):
    """Whatever the prompt was padded to, and up to the last position of the context."""
    prompt = np.random.default_rng(length).integers(0, CONFIG.vocab_size, length)
    new = min(4, CONFIG.context - length)
    taken = list(make(model).run(prompt, new, keep_logits=True))
    tokens = [*prompt, *(step.token for step in taken)]
    whole = whole_logits(model, tokens)
    for index, step in enumerate(taken):
        np.testing.assert_allclose(step.logits, whole[length - 1 + index], atol=2e-5)
        assert step.token == int(np.argmax(step.logits))


def test_forced_tokens_are_followed(model):
    forced = [7, 120, 33, 4]
    taken = list(make(model).run(PROMPT, 4, forced_tokens=forced, keep_logits=True))
    assert [step.token for step in taken] == forced
    whole = whole_logits(model, [*PROMPT, *forced])
    for index, step in enumerate(taken):
        np.testing.assert_allclose(step.logits, whole[len(PROMPT) - 1 + index], atol=2e-5)
