"""A model small enough to write in a millisecond."""

import ml_dtypes
import numpy as np
import tokenizers

from codecjax.models.config import LlamaConfig
from codecjax.models.parameters import parameters

CONFIG = LlamaConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    context=32,
    bos_id=None,
    eos_ids=(0,),
)


def random_weights(config, seed=0, dtype=ml_dtypes.bfloat16):
    """Every bit pattern is as likely as any other, NaN payloads included."""
    generator = np.random.default_rng(seed)
    width = np.dtype(dtype).itemsize
    return {
        each.huggingface: generator.integers(0, 256, (*each.shape, width), np.uint8).view(dtype)[
            ..., 0
        ]
        for each in parameters(config)
    }


def byte_tokenizer():
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:47]
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer
