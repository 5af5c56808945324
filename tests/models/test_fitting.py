"""Models whose matrices have one of two widths, so that they meet a number of bits a weight."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import codecjax
from codecjax.errors import UserError
from codecjax.io.checkpoint import read_checkpoint, save
from codecjax.models.config import LlamaConfig
from codecjax.models.model import Model
from codecjax.models.parameters import walk
from codecjax.models.random_weights import random_model
from codecjax.tiles import TiledMatrix

CONFIG = LlamaConfig(
    vocab_size=1152,
    hidden_size=256,
    intermediate_size=512,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=64,
    context=64,
)
TILE = (64, 128)


def model(codec: str = "window", **options: float) -> Model:
    return random_model(CONFIG, 0, codec, TILE, options)


@pytest.fixture(scope="module")
def wide() -> Model:
    return model()


@pytest.fixture(scope="module")
def narrow() -> Model:
    return model(width=8)


@pytest.fixture(scope="module")
def between(wide: Model, narrow: Model) -> Model:
    return model(most_bits=(wide.bits_per_weight + narrow.bits_per_weight) / 2)


def narrow_ones(found: Model) -> set[str]:
    widths = {
        ".".join(each.path): t.options_dict["width"]
        for each, t in walk(CONFIG, found.parameters)
        if isinstance(t, TiledMatrix)
    }
    assert set(widths.values()) <= {8, 11}
    return {name for name, width in widths.items() if width == 8}


def test_no_more_matrices_are_narrow_than_it_takes(
    wide: Model, narrow: Model, between: Model
) -> None:
    assert between.bits_per_weight <= between.options["most_bits"]
    # The embedding, which is not multiplied, then the head, then gate and up layer by layer.
    expected = {"embedding", "head", "layers_0.gate", "layers_0.up", "layers_1.gate", "layers_1.up"}
    assert narrow_ones(between) == expected
    assert narrow_ones(model(most_bits=between.bits_per_weight)) == expected
    # Gate and up of a layer are between a sixth and a fifth of all weights.
    a_fifth = (wide.bits_per_weight - narrow.bits_per_weight) / 5
    fewer = model(most_bits=between.bits_per_weight + a_fifth)
    assert narrow_ones(fewer) == expected - {"layers_1.gate", "layers_1.up"}
    assert narrow_ones(model(most_bits=wide.bits_per_weight)) == {"embedding"}
    everything = model(most_bits=narrow.bits_per_weight)
    assert narrow_ones(everything) == narrow_ones(narrow)
    assert everything.nbytes == narrow.nbytes


def test_those_of_a_width_share_arrays(between: Model) -> None:
    layer = between.parameters["layers_0"]
    assert layer["gate"].arrays["words"] is layer["up"].arrays["words"]
    assert layer["query"].arrays["words"] is layer["down"].arrays["words"]
    assert layer["query"].arrays["words"] is not layer["up"].arrays["words"]


def test_what_cannot_be_met_is_refused() -> None:
    with pytest.raises(UserError, match=r"15 matrices with width 8.*most_bits 8: raise that"):
        model(most_bits=8.0)
    with pytest.raises(UserError, match=r"most_bits 17\.0: choose a number from 0 to 16"):
        model(most_bits=17.0)


def test_a_matrix_alone_is_narrow_where_it_must_be() -> None:
    w = codecjax.decode(model("bf16").matrices["head"])
    wide, narrow = (codecjax.encode(w, tile=TILE, width=width) for width in (11, 8))
    for most_bits, expected in ((wide.bits_per_weight, wide), (narrow.bits_per_weight, narrow)):
        found = codecjax.encode(w, tile=TILE, most_bits=most_bits)
        chex.assert_trees_all_equal(found, expected)
    with pytest.raises(UserError, match=r"a matrix of 1152x256 with width 8.*most_bits 9: raise"):
        codecjax.encode(w, tile=TILE, most_bits=9.0)


def test_nothing_is_lost(between: Model, tmp_path: Path) -> None:
    tokens = jnp.arange(8, dtype=jnp.int32)[None]
    expected = codecjax.logits(model("bf16"), tokens, implementation="xla")
    chex.assert_trees_all_equal(codecjax.logits(between, tokens, implementation="xla"), expected)
    save(between, tmp_path / "checkpoint")
    again = read_checkpoint(tmp_path / "checkpoint")
    assert narrow_ones(again) == narrow_ones(between)
    assert (again.options, again.nbytes) == (between.options, between.nbytes)
    chex.assert_trees_all_equal(codecjax.logits(again, tokens, implementation="xla"), expected)


def test_a_matrix_that_would_expand_stays_as_it_is() -> None:
    """Random bits have all exponents: nothing is saved by any width."""
    bits = np.random.default_rng(0).integers(0, 1 << 16, (64, 128)).astype(np.uint16)
    w = jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.bfloat16)
    assert codecjax.encode(w, tile=TILE, most_bits=16.0).is_dense
