import pytest

from codecjax.errors import UserError
from codecjax.models.config import LlamaConfig, RopeScaling, tinyllama
from codecjax.models.parameters import from_tree, parameters, to_tree

# The config.json published with TinyLlama-1.1B-Chat-v1.0.
PUBLISHED = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.35.0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
    "rope_type": "llama3",
}


def test_tinyllama_is_the_published_config():
    assert LlamaConfig.from_huggingface(PUBLISHED) == tinyllama()
    table = parameters(tinyllama())
    assert sum(each.projection for each in table) == 155
    weights = 0
    for each in table:
        size = 1
        for length in each.shape:
            size *= length
        weights += size
    assert weights == 1_100_048_384  # As the model's page gives it.


@pytest.mark.parametrize(
    ("change", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 500000}, 500000.0, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 10000.0, RopeScaling("linear", 2.0)),
        ({"rope_scaling": {"rope_type": "default"}}, 10000.0, None),
        ({"rope_scaling": LLAMA3}, 10000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 1024)),
        (
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "rope_theta": None},
            5e5,
            RopeScaling("llama3", 8.0, 1.0, 4.0, 1024),
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, None),
    ],
)
def test_rotary_embeddings_are_read_from_old_and_new_keys(change, theta, scaling):
    config = LlamaConfig.from_huggingface({**PUBLISHED, **change})
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rope_scaling": LLAMA3, "tie_word_embeddings": True},
        {"rope_scaling": {"type": "linear", "factor": 2.5}, "head_dim": 96},
        {"eos_token_id": [2, 5], "bos_token_id": None},
        {"eos_token_id": None},
    ],
)
def test_config_survives_writing_and_reading(change):
    config = LlamaConfig.from_huggingface({**PUBLISHED, **change})
    assert LlamaConfig.from_huggingface(config.to_huggingface()) == config


def test_left_out_fields_get_the_defaults_of_transformers():
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    raw = {name: PUBLISHED[name] for name in (*sizes, "num_attention_heads", "model_type")}
    config = LlamaConfig.from_huggingface(raw)
    assert (config.kv_heads, config.head_dim, config.context) == (32, 64, 2048)
    assert (config.rms_eps, config.tied, config.rope_theta) == (1e-6, False, 10000.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM.*LlamaForCausalLM"),
        ({"architectures": []}, "none.*LlamaForCausalLM"),
        ({"model_type": "qwen2"}, "qwen2.*'llama'"),
        ({"architectures": None, "model_type": None}, "neither"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"mlp_bias": "yes"}, "mlp_bias.*'yes'"),
        ({"hidden_act": "gelu"}, "gelu.*silu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "yarn.*linear"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_scaling": 2}, "rope_scaling"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_attention_heads": 30}, "num_attention_heads 30"),
        ({"head_dim": 63}, "head_dim"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -2048}, "hidden_size"),
        ({"hidden_size": 2048.0}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"bos_token_id": -1}, "bos_token_id"),
    ],
)
def test_what_is_not_supported_is_named(change, named):
    with pytest.raises(UserError, match=named) as caught:
        LlamaConfig.from_huggingface({**PUBLISHED, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
def test_tree_and_tensor_names_are_one_to_one(tied):
    raw = {**PUBLISHED, "num_hidden_layers": 3, "tie_word_embeddings": tied}
    config = LlamaConfig.from_huggingface(raw)
    table = parameters(config)
    for column in ("path", "huggingface", "name"):
        assert len({getattr(each, column) for each in table}) == len(table)
    weights = {each.huggingface: each.name for each in table}
    tree = to_tree(config, weights)
    assert tree["layers_2"]["down"] == "layers.2.mlp.down"
    assert ("head" in tree) is not tied
    assert from_tree(config, tree) == weights
