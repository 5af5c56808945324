"""Models whose matrices have one of two widths, by their shapes."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

import codecjax
from codecjax.codecs.window import BY_SHAPE
from codecjax.io.checkpoint import read_checkpoint, save
from codecjax.models.config import LlamaConfig
from codecjax.models.model import Model
from codecjax.models.random_weights import random_model
from codecjax.tiles import TiledMatrix

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=64,
    context=64,
)
TILE = (64, 128)


def model(codec: str, **options: int) -> Model:
    return random_model(CONFIG, 0, codec, TILE, options)


@pytest.fixture(scope="module")
def by_shape() -> Model:
    return model("window", width=BY_SHAPE)


def widths(found: Model) -> dict[str, int]:
    matrices = {
        jax.tree_util.keystr(path, simple=True, separator="."): t
        for path, t in jax.tree_util.tree_leaves_with_path(
            found.parameters, is_leaf=lambda each: isinstance(each, TiledMatrix)
        )
        if isinstance(t, TiledMatrix)
    }
    return {name: t.options_dict["width"] for name, t in matrices.items()}


def test_matrices_of_more_rows_than_columns_have_the_fewest_bits(by_shape: Model) -> None:
    few = {name for name, width in widths(by_shape).items() if width == 8}
    assert few == {"embedding", "head", "layers_0.gate", "layers_0.up"}
    assert set(widths(by_shape).values()) == {8, 11}
    assert model("window", width=8).nbytes < by_shape.nbytes < model("window").nbytes


def test_those_of_a_width_share_arrays(by_shape: Model) -> None:
    layer = by_shape.parameters["layers_0"]
    assert layer["gate"].arrays["words"] is layer["up"].arrays["words"]
    assert layer["query"].arrays["words"] is layer["down"].arrays["words"]
    assert layer["query"].arrays["words"] is not layer["up"].arrays["words"]


def test_nothing_is_lost(by_shape: Model, tmp_path: Path) -> None:
    tokens = jnp.arange(8, dtype=jnp.int32)[None]
    expected = codecjax.logits(model("bf16"), tokens, implementation="xla")
    chex.assert_trees_all_equal(codecjax.logits(by_shape, tokens, implementation="xla"), expected)
    save(by_shape, tmp_path / "checkpoint")
    again = read_checkpoint(tmp_path / "checkpoint")
    assert widths(again) == widths(by_shape)
    assert again.options == {"width": BY_SHAPE}
    chex.assert_trees_all_equal(codecjax.logits(again, tokens, implementation="xla"), expected)
