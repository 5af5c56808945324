"""Bits per byte of a model on texts: how well it predicts them, whatever its tokenizer."""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from codecjax.models.config import LlamaConfig
from codecjax.models.llama import forward

# Windows of one evaluation batch.
_BATCH = 8


def token_ids(tokenizer: tokenizers.Tokenizer, texts: Iterable[str], separator: int) -> np.ndarray:
    """int32[n]: the tokens of all texts, each after a separator."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts)):
        ids.append(separator)
        ids += encoding.ids
    return np.array(ids, np.int32)


def windows(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts tokens into overlapping windows, so that most are predicted from a long past.

    Args:
      ids: int32[n], the tokens of one text.
      length: tokens of a window.

    Returns:
      int32[windows, length + 1] and bool[windows, length], which of the predictions of a
      window's tokens 1.. count; every token but the first counts in exactly one window.
    """
    stride = length // 2
    starts = range(0, max(1, len(ids) - 1 - stride), stride)
    tokens = np.zeros((len(starts), length + 1), np.int32)
    counts = np.zeros((len(starts), length), bool)
    for row, start in enumerate(starts):
        part = ids[start : start + length + 1]
        tokens[row, : len(part)] = part
        counts[row, 0 if row == 0 else length - stride : len(part) - 1] = True
    return tokens, counts


@functools.partial(jax.jit, static_argnames=("config",))
def _loss(
    config: LlamaConfig, parameters: Mapping[str, Any], tokens: jax.Array, counts: jax.Array
) -> jax.Array:
    logits = forward(parameters, tokens[:, :-1], config=config)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.sum(jnp.where(counts, losses, 0.0))


def bits_per_byte(
    config: LlamaConfig,
    parameters: Mapping[str, Any],
    tokenizer: tokenizers.Tokenizer,
    texts: Mapping[str, str],
    separator: int,
) -> float:
    """Bits that the model needs for the texts, per byte of their UTF-8.

    Each text is predicted from its beginning with windows of the model's whole context, in
    float32.

    Args:
      config: the model's sizes.
      parameters: its weights, as in `codecjax.models.llama.forward`.
      tokenizer: its tokenizer.
      texts: by name.
      separator: token id that precedes a text.
    """
    parts = [
        windows(token_ids(tokenizer, [text], separator), config.context) for text in texts.values()
    ]
    tokens = np.concatenate([part[0] for part in parts])
    counts = np.concatenate([part[1] for part in parts])
    padding = -len(tokens) % _BATCH
    tokens = np.pad(tokens, ((0, padding), (0, 0)))
    counts = np.pad(counts, ((0, padding), (0, 0)))
    nats = 0.0
    for start in range(0, len(tokens), _BATCH):
        batch = slice(start, start + _BATCH)
        nats += float(_loss(config, parameters, tokens[batch], counts[batch]))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts.values())
