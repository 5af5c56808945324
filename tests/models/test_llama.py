"""The decoder against transformers: golden logits always, a live comparison where it is there."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import codecjax
from codecjax.io.huggingface import read_folder
from codecjax.models.llama import Llama, empty_cache, forward
from codecjax.models.parameters import to_tree

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
EMBEDDED = ROOT / "experiments" / "embedded_model"
CASES = sorted(file.parent.name for file in GOLDEN.glob("*/golden.safetensors"))
RANDOM = ["gqa_untied", "llama3_rope", "mha_tied"]


def model_folder(case):
    return EMBEDDED if case == "embedded" else GOLDEN / case


def float32_tree(folder):
    read = read_folder(folder)
    tree = to_tree(read.config, read.weights)
    return read.config, jax.tree.map(lambda weight: jnp.asarray(weight, jnp.float32), tree)


def test_every_model_of_the_repository_has_golden_logits():
    embedded = ["embedded"] if (EMBEDDED / "config.json").is_file() else []
    assert sorted([*RANDOM, *embedded]) == CASES


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case):
    golden = load_file(GOLDEN / case / "golden.safetensors")
    model = codecjax.load(model_folder(case))
    logits = codecjax.logits(model, golden["tokens"], implementation="xla", activations="float32")
    assert logits.dtype == jnp.float32
    assert logits.shape == golden["logits"].shape
    assert np.abs(logits - golden["logits"]).max() < 1e-4
    # Logits near zero would agree whatever the model does.
    assert golden["logits"].std() > 0.5


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers_run_now(case):
    torch = pytest.importorskip("torch", reason="the live comparison needs torch")
    transformers = pytest.importorskip(
        "transformers", reason="the live comparison needs transformers"
    )
    folder = model_folder(case)
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    config, tree = float32_tree(folder)
    tokens = np.random.default_rng(7).integers(0, config.vocab_size, (3, 33), np.int32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    assert np.abs(forward(tree, tokens, config=config) - expected).max() < 1e-4


def test_rotary_positions_go_on_after_the_start():
    """A sequence in two parts through the KV cache has the logits of the whole."""
    config, tree = float32_tree(GOLDEN / "llama3_rope")
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 9), np.int32)
    whole = forward(tree, tokens, config=config)

    @jax.jit
    def part(tree, tokens, start, cache):
        llama = Llama(config, tree)
        hidden, cache, _ = llama.hidden(tokens, start, cache)
        return llama.logits(hidden)[0], cache

    cache = empty_cache(config, 2, 12, "float32")
    logits, cache = part(tree, tokens[:, :7], 0, cache)
    np.testing.assert_allclose(logits, whole[:, :7], atol=2e-5)
    for position in (7, 8):
        logits, cache = part(tree, tokens[:, position : position + 1], position, cache)
        np.testing.assert_allclose(logits[:, 0], whole[:, position], atol=2e-5)


def test_later_tokens_do_not_change_earlier_logits():
    config, tree = float32_tree(GOLDEN / "gqa_untied")
    tokens = np.arange(16, dtype=np.int32)[None]
    changed = tokens.copy()
    changed[0, 10:] = 99
    before, after = forward(tree, tokens, config=config), forward(tree, changed, config=config)
    np.testing.assert_array_equal(before[0, :10], after[0, :10])
    assert not np.allclose(before[0, 10], after[0, 10])


def test_forward_has_gradients_of_every_weight():
    config, tree = float32_tree(GOLDEN / "mha_tied")
    tokens = np.arange(12, dtype=np.int32)[None]

    @jax.jit
    @jax.value_and_grad
    def loss(tree):
        shares = jax.nn.log_softmax(forward(tree, tokens[:, :-1], config=config))
        return -jnp.take_along_axis(shares, tokens[:, 1:, None], axis=-1).mean()

    _, gradient = loss(tree)
    assert all(jnp.abs(each).max() > 0 for each in jax.tree.leaves(gradient))
    # The derivative along the gradient, from a finite difference.
    expected = sum(float(jnp.sum(each**2)) for each in jax.tree.leaves(gradient))
    step = 1e-3 / np.sqrt(expected)
    ahead, _ = loss(jax.tree.map(lambda weight, slope: weight + step * slope, tree, gradient))
    behind, _ = loss(jax.tree.map(lambda weight, slope: weight - step * slope, tree, gradient))
    assert (ahead - behind) / (2 * step) == pytest.approx(expected, rel=0.02)


def test_the_module_splits_and_merges_as_flax_modules_do():
    model = codecjax.load(GOLDEN / "gqa_untied")
    llama = Llama(model.config, model.parameters, "xla")
    graph, state = nnx.split(llama)
    tokens = jnp.arange(4, dtype=jnp.int32)[None]

    @jax.jit
    def logits(state):
        merged = nnx.merge(graph, state)
        return merged.logits(merged.hidden(tokens)[0])[0]

    expected = codecjax.logits(model, tokens, implementation="xla")
    np.testing.assert_allclose(logits(state), expected, atol=1e-5)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == model.nbytes
