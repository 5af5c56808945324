import warnings

import jax
import numpy as np
import pytest
from small_model import CONFIG, byte_tokenizer, random_weights

import codecjax
from codecjax.codecs.cast import CastWarning
from codecjax.codecs.window import OPTIONS
from codecjax.errors import UserError
from codecjax.io.huggingface import write_folder
from codecjax.models.config import LlamaConfig
from codecjax.models.parameters import parameters, walk
from codecjax.models.random_weights import random_model
from codecjax.tiles import TiledMatrix

# Wide enough to be compressed.
WIDE = LlamaConfig(128, 128, 128, 1, 4, 4, 32, 64)


def plain_bits(model):
    """Bit patterns of all weights, decoded."""
    return {
        parameter.name: np.asarray(
            codecjax.decode(weight) if isinstance(weight, TiledMatrix) else weight
        ).view(np.uint16)
        for parameter, weight in walk(model.config, model.parameters)
    }


def assert_same_weights(one, other):
    left, right = plain_bits(one), plain_bits(other)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def test_a_folder_is_loaded_bit_for_bit(folder):
    weights = random_weights(CONFIG)
    for codec in ("window", "bf16"):
        model = codecjax.load(folder, codec=codec)
        assert (model.codec, model.tile, model.cast) == (codec, (256, 256), None)
        assert model.tokenizer.to_str() == byte_tokenizer().to_str()
        bits = plain_bits(model)
        for each in parameters(CONFIG):
            np.testing.assert_array_equal(
                bits[each.name], weights[each.huggingface].view(np.uint16)
            )


def test_one_warning_reports_all_casts(tmp_path):
    weights = {
        each.huggingface: np.random.default_rng(0).normal(size=each.shape).astype(dtype)
        for each, dtype in zip(parameters(CONFIG), ["f4", "f2"] * 99, strict=False)
    }
    write_folder(tmp_path / "model", CONFIG, weights)
    with pytest.warns(CastWarning) as caught:
        model = codecjax.load(tmp_path / "model")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    report = caught[0].message.report
    assert report == model.cast
    assert report.weights == sum(weight.size for weight in weights.values())
    assert report.dtype == "float16+float32"
    assert model.tokenizer is None


def test_a_checkpoint_keeps_its_codec_unless_asked(tmp_path):
    model = random_model(WIDE, 0, "window", (64, 128), {"width": 8})
    codecjax.save(model, tmp_path / "checkpoint")

    def load(**arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return codecjax.load(tmp_path / "checkpoint", **arguments)

    same = load()
    assert (same.codec, same.options, same.tile) == ("window", OPTIONS | {"width": 8}, (64, 128))
    for array, other in zip(
        jax.tree.leaves(same.parameters), jax.tree.leaves(model.parameters), strict=True
    ):
        np.testing.assert_array_equal(array, other)
    for arguments, expected in [
        ({"codec": "bf16"}, ("bf16", {}, (64, 128))),
        ({"codec": "window"}, ("window", OPTIONS, (64, 128))),
        ({"width": 11}, ("window", OPTIONS, (64, 128))),
        ({"most_bits": 12}, ("window", OPTIONS | {"width": 8, "most_bits": 12}, (64, 128))),
        ({"tile": (128, 128)}, ("window", OPTIONS | {"width": 8}, (128, 128))),
    ]:
        other = load(**arguments)
        assert (other.codec, other.options, other.tile) == expected
        assert_same_weights(other, model)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"codec": "zip"}, "'zip'"),
        ({"width": 12}, "width 12"),
        ({"codec": "bf16", "width": 11}, "no option 'width'"),
        ({"tile": (256, 100)}, "256x100"),
    ],
)
def test_bad_options_are_named_before_anything_is_read(arguments, named, tmp_path):
    with pytest.raises(UserError, match=named):
        codecjax.load(tmp_path / "nowhere", **arguments)


def test_other_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        codecjax.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither a config\.json nor a manifest\.json"):
        codecjax.load(tmp_path)
