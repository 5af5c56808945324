import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import codecjax
from codecjax.codecs import own_arrays
from codecjax.codecs.cast import CastReport
from codecjax.errors import UserError
from codecjax.models.config import LlamaConfig, tinyllama
from codecjax.models.encoding import encode_weights
from codecjax.models.model import cache_objects
from codecjax.models.parameters import parameters, walk
from codecjax.models.random_weights import random_model
from codecjax.tiles import DEFAULT_TILE, TiledMatrix

CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=128,
    intermediate_size=256,
    layers=2,
    heads=4,
    kv_heads=4,
    head_dim=32,
    context=64,
)
TILE = (64, 128)


@pytest.fixture(scope="module")
def window():
    return random_model(CONFIG, 3, "window", TILE, {})


@pytest.fixture(scope="module")
def plain():
    return random_model(CONFIG, 3, "bf16", TILE, {})


def weights_of(config, dtype):
    generator = np.random.default_rng(0)
    return {
        each.huggingface: np.asarray(generator.normal(size=each.shape), dtype)
        for each in parameters(config)
    }


def test_sizes_count_every_array(window, plain):
    weights = sum(int(np.prod(each.shape)) for each in parameters(CONFIG))
    assert window.bf16_nbytes == plain.bf16_nbytes == plain.nbytes == 2 * weights
    rest = sum(w.nbytes for each, w in walk(CONFIG, window.parameters) if not each.projection)
    own = [own_arrays(t) for t in window.matrices.values()]
    assert window.nbytes == rest + sum(leaf.nbytes for leaf in jax.tree.leaves(own))
    projections = sum(int(np.prod(t.shape)) for t in window.matrices.values())
    stored = sum(t.nbytes for t in window.matrices.values())
    assert window.bits_per_weight == 8 * stored / projections
    assert plain.bits_per_weight == 16


def test_matrices_stand_in_order_of_use_and_own_consecutive_tiles(window):
    names = [each.name for each in parameters(CONFIG) if each.projection]
    assert list(window.matrices) == list(window.first_tiles) == names
    first = 0
    for name, t in window.matrices.items():
        assert window.first_tiles[name] == first
        first += t.tiles
    assert first == window.tile_count
    # One layer, by hand: query 2, key 2, value 2, output 2, gate 4, up 4, down 4; head 2.
    assert window.tile_count == 2 * 20 + 2


def test_random_weights_depend_on_the_seed_and_not_on_the_codec(window, plain):
    other = random_model(CONFIG, 4, "bf16", TILE, {})
    for (parameter, one), (_, two), (_, three) in zip(
        walk(CONFIG, window.parameters),
        walk(CONFIG, plain.parameters),
        walk(CONFIG, other.parameters),
        strict=True,
    ):
        if isinstance(one, TiledMatrix):
            one, two, three = (codecjax.decode(each) for each in (one, two, three))
            assert not np.array_equal(two, three), parameter.name
        np.testing.assert_array_equal(
            np.asarray(one).view(np.uint16), np.asarray(two).view(np.uint16)
        )


def test_random_rows_are_normal_with_differing_scales(plain):
    w = np.asarray(plain.parameters["layers_0"]["down"].arrays["dense"], np.float32)
    scales = w.std(axis=1)
    assert 0.015 < np.median(scales) < 0.025
    assert 0.15 < np.log(scales).std() < 0.4


def test_cache_objects_are_the_matrices_that_cost_a_decode(window, plain):
    objects = cache_objects(window)
    assert [item.name for item in objects] == list(window.matrices)
    for item, t in zip(objects, window.matrices.values(), strict=True):
        first = window.first_tiles[item.name]
        np.testing.assert_array_equal(item.tiles, np.arange(first, first + t.tiles))
        assert item.cost == t.tiles
        assert item.matrix is None
    assert [len(item.tiles) for item in cache_objects(plain)] == [0] * len(plain.matrices)


def test_verbatim_tiles_are_no_part_of_cache_objects():
    weights = weights_of(CONFIG, jnp.bfloat16)
    name = "model.layers.1.mlp.gate_proj.weight"
    bits = np.random.default_rng(1).integers(0, 2**16, (64, 128), np.uint16)
    weights[name] = np.concatenate([weights[name][:192], bits.view(jnp.bfloat16)])
    model = encode_weights(CONFIG, weights, "window", TILE, {})
    item = next(item for item in cache_objects(model) if item.name == "layers.1.mlp.gate")
    first = model.first_tiles["layers.1.mlp.gate"]
    np.testing.assert_array_equal(item.tiles, [first, first + 1, first + 2])
    assert item.cost == 3


def test_casts_are_reported_together():
    model = encode_weights(CONFIG, weights_of(CONFIG, np.float32), "window", TILE, {})
    assert isinstance(model.cast, CastReport)
    assert model.cast.weights == model.bf16_nbytes // 2
    assert 0 < model.cast.changed <= model.cast.weights
    assert all(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(model.parameters))
    assert encode_weights(CONFIG, weights_of(CONFIG, jnp.bfloat16), "bf16", TILE, {}).cast is None


def test_weights_are_asked_for_one_after_another():
    class Watched(dict):
        asked: list[str] = []  # noqa: RUF012

        def __getitem__(self, name):
            self.asked.append(name)
            return super().__getitem__(name)

    weights = Watched(weights_of(CONFIG, jnp.bfloat16))
    encode_weights(CONFIG, weights, "bf16", TILE, {})
    assert weights.asked == [each.huggingface for each in parameters(CONFIG)]


@pytest.mark.parametrize(
    ("change", "arguments", "named"),
    [
        ({"lm_head.weight": None}, {}, "lm_head.weight is missing"),
        ({"lm_head.weight": np.zeros((80, 128), jnp.bfloat16)}, {}, r"\[80, 128\].*\[128, 128\]"),
        ({"lm_head.weight": np.zeros((128, 128), np.int8)}, {}, "int8"),
        ({}, {"codec": "zip"}, "unknown codec 'zip'"),
        ({}, {"options": {"width": 9}}, "width 9"),
        ({}, {"options": {"depth": 9}}, "'depth'"),
        ({}, {"tile": (100, 128)}, "tile 100x128"),
    ],
)
def test_bad_weights_and_options_are_named(change, arguments, named):
    weights = {**weights_of(CONFIG, jnp.bfloat16), **change}
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    arguments = {"codec": "window", "tile": TILE, "options": {}, **arguments}
    with pytest.raises(UserError, match=named):
        encode_weights(CONFIG, weights, **arguments)


@pytest.mark.parametrize("codec", ["bf16", "window", "rans"])
def test_a_tied_model_multiplies_by_its_embedding_last(codec):
    model = random_model(dataclasses.replace(CONFIG, tied=True), 3, codec, TILE, {})
    assert "head" not in model.parameters
    assert list(model.matrices)[-2:] == ["layers.1.mlp.down", "embedding"]
    embedding = model.parameters["embedding"]
    assert model.matrices["embedding"] is embedding
    assert embedding.codec == ("bf16" if codec == "bf16" else "window")
    assert model.first_tiles["embedding"] == model.tile_count - embedding.tiles
    last = cache_objects(model)[-1]
    assert last.name == "embedding"
    assert len(last.tiles) == (0 if codec == "bf16" else embedding.tiles)


@pytest.mark.parametrize(
    ("codec", "options", "stored"),
    [
        ("bf16", {}, ("bf16", {})),
        ("window", {"width": 16}, ("window", {"width": 16})),
        ("int8_rans", {}, ("window", {"width": 8})),
    ],
)
def test_the_embedding_is_lossless_and_no_part_of_the_cache(codec, options, stored):
    model = random_model(CONFIG, 3, codec, TILE, options)
    embedding = model.parameters["embedding"]
    assert (embedding.codec, embedding.options_dict) == stored
    assert "embedding" not in model.matrices
    # Every weight is made from a key of its own, whatever the others are.
    plain = random_model(CONFIG, 3, "bf16", TILE, {}).parameters["embedding"].arrays["dense"]
    np.testing.assert_array_equal(
        np.asarray(codecjax.decode(embedding)).view(np.uint16), np.asarray(plain).view(np.uint16)
    )


def test_device_memory_at_the_shapes_of_tinyllama():
    """Of one layer and a part of the vocabulary, with the layers and rows that are left out."""
    full = tinyllama()
    part = dataclasses.replace(full, layers=1, vocab_size=2048)
    model = random_model(part, 0, "window", DEFAULT_TILE, {"width": 8})
    by_rows = [model.parameters[name].nbytes for name in ("embedding", "head")]
    layer = sum(t.nbytes for name, t in model.matrices.items() if name != "head")
    stored = full.layers * layer + sum(by_rows) * full.vocab_size / part.vocab_size
    counted = stored / sum(2 * math.prod(each.shape) for each in parameters(full))
    assert 0.70 < counted < 0.72
    # All that the model holds was counted but its norms.
    norms = 2 * (2 * part.layers + 1) * part.hidden_size
    assert layer + sum(by_rows) + norms == model.nbytes
