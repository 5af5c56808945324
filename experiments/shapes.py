"""Shapes of well-known models, for runs with random weights."""

from codecjax.models.config import LlamaConfig, tinyllama

SHAPES: dict[str, LlamaConfig] = {
    "tinyllama": tinyllama(),
    # Runs in a moment anywhere: for trials and tests.
    "tiny": LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=128,
        layers=1,
        heads=4,
        kv_heads=2,
        head_dim=32,
        context=128,
        rms_eps=1e-5,
    ),
}
