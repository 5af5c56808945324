"""Makes the golden files: Llama models in Hugging Face format with the logits of transformers.

It needs an environment of its own, so that the tests stay free of torch:

    pip install torch==2.13.0 transformers==5.24.0
    python tests/golden/make_golden.py              the three random models beside this file
    python tests/golden/make_golden.py embedded     only the logits of experiments/embedded_model

Each golden.safetensors holds `tokens` int32[2, 24] and `logits` float32[2, 24, V], computed in
float32 with eager attention from the bfloat16 weights of the folder.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
EMBEDDED = HERE.parent.parent / "experiments" / "embedded_model"

COMMON = {
    "vocab_size": 256,
    "hidden_size": 128,
    "max_position_embeddings": 64,
    # Several times the default: logits far from uniform show errors.
    "initializer_range": 0.12,
    "bos_token_id": None,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}
MODELS = {
    "gqa_untied": {
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "mha_tied": {
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    },
    "llama3_rope": {
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        # Wavelengths of kept, blended and divided frequencies all occur within 24 positions.
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 2.0,
            "original_max_position_embeddings": 16,
        },
    },
}


def make_model(folder: Path, sizes: dict, seed: int) -> None:
    """Writes a randomly initialised model whose norms are not all ones."""
    torch.manual_seed(seed)
    config = LlamaConfig(**COMMON, **sizes, architectures=["LlamaForCausalLM"])
    model = LlamaForCausalLM(config).to(torch.float32)
    weights = model.state_dict()
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    for name, weight in weights.items():
        if weight.ndim == 1:
            weight += 0.3 * torch.randn_like(weight)
        weights[name] = weight.to(torch.bfloat16).contiguous()
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_logits(folder: Path, golden: Path, seed: int) -> None:
    """Writes tokens and logits of the model in `folder`."""
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.config.vocab_size, (2, 24), generator=generator)
    with torch.no_grad():
        logits = model(tokens).logits
    golden.parent.mkdir(exist_ok=True)
    save_file({"tokens": tokens.to(torch.int32), "logits": logits.contiguous()}, golden)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean() / torch.log(
        torch.tensor(2.0)
    )
    print(f"{golden.parent.name}: logits std {logits.std():.2f}, entropy {entropy:.2f} bits")


def main() -> None:
    if sys.argv[1:] == ["embedded"]:
        make_logits(EMBEDDED, HERE / "embedded" / "golden.safetensors", seed=100)
        return
    for seed, (name, sizes) in enumerate(MODELS.items()):
        make_model(HERE / name, sizes, seed)
        make_logits(HERE / name, HERE / name / "golden.safetensors", seed)


if __name__ == "__main__":
    main()
