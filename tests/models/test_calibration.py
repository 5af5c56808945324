"""Inputs of projections on a calibration text."""

import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.errors import UserError
from codecjax.models.calibration import calibration_windows, input_importance
from codecjax.models.config import LlamaConfig
from codecjax.models.encoding import encode_weights
from codecjax.models.llama import Llama
from codecjax.models.parameters import from_tree, parameters, to_tree
from codecjax.models.random_weights import random_model
from codecjax.operations import decode
from codecjax.tiles import TiledMatrix

CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=128,
    intermediate_size=256,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=32,
    context=64,
)
TOKENS = np.random.default_rng(0).integers(0, 128, (3, 32)).astype(np.int32)


@pytest.fixture(scope="module")
def weights() -> dict[str, jnp.ndarray]:
    model = random_model(CONFIG, 0, "bf16", (64, 128), {})
    found = from_tree(CONFIG, model.parameters)
    return {name: decode(w) if isinstance(w, TiledMatrix) else w for name, w in found.items()}


def test_importance_is_the_mean_products_of_what_a_projection_multiplies(
    weights: dict[str, jnp.ndarray],
) -> None:
    tree = to_tree(CONFIG, weights)
    found = input_importance(CONFIG, tree, TOKENS)
    projections = {each.huggingface: each for each in parameters(CONFIG) if each.projection}
    assert {name: (each.shape[1], each.shape[1]) for name, each in projections.items()} == {
        name: each.shape for name, each in found.items()
    }
    llama = Llama(CONFIG, tree)
    # Of the first and the last projection the inputs are known without a look inside.
    embedded = tree["embedding"][TOKENS].astype(jnp.float32)
    expected = {
        "model.layers.0.self_attn.k_proj.weight": llama.layers[0].attention_norm(embedded).value(),
        "lm_head.weight": llama.final_norm(llama.hidden(jnp.asarray(TOKENS))[0]).value(),
    }
    for name, inputs in expected.items():
        x = np.asarray(inputs, np.float64).reshape(TOKENS.size, -1)
        np.testing.assert_allclose(found[name], x.T @ x / len(x), rtol=1e-4, atol=1e-4)


def test_batches_do_not_matter(weights: dict[str, jnp.ndarray]) -> None:
    many = np.tile(TOKENS, (5, 1))
    one, other = (input_importance(CONFIG, to_tree(CONFIG, weights), t) for t in (TOKENS, many))
    for name, importance in one.items():
        np.testing.assert_allclose(other[name], importance, rtol=1e-4, atol=1e-5)


def test_windows_are_spread_over_the_text() -> None:
    windows = calibration_windows(np.arange(1005), 10, 3)
    np.testing.assert_array_equal(windows[:, 0], [0, 490, 990])
    assert calibration_windows(np.arange(7), 10, 3).shape == (1, 7)
    with pytest.raises(UserError, match="no tokens"):
        calibration_windows(np.arange(0), 10, 3)


def test_a_calibrated_model_meets_the_rate_and_differs(weights: dict[str, jnp.ndarray]) -> None:
    importance = input_importance(CONFIG, to_tree(CONFIG, weights), TOKENS)

    def stored(given: dict[str, np.ndarray] | None) -> tuple[float, list[np.ndarray]]:
        options = {"bits_per_weight": 4.0}
        model = encode_weights(CONFIG, weights, "ecsq", (128, 128), options, importance=given)
        decoded = [np.asarray(decode(t), np.float32) for t in model.matrices.values()]
        return model.bits_per_weight, decoded

    (plain_bits, plain), (bits, weighed) = stored(None), stored(importance)
    assert plain_bits == pytest.approx(4, rel=0.02)
    assert bits == pytest.approx(4, rel=0.02)
    assert all((one != other).any() for one, other in zip(plain, weighed, strict=True))
    del importance["lm_head.weight"]
    with pytest.raises(UserError, match=r"importance of lm_head.weight is missing"):
        stored(importance)
    with pytest.raises(UserError, match=r"codec 'rans' knows no importance"):
        encode_weights(CONFIG, weights, "rans", (64, 128), {}, importance=importance)
