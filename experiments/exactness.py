"""Whether a compressed model computes the logits of plain bf16, to the last bit, or how nearly."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from codecjax.generate import Generator, logits
from codecjax.models.model import Model


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answers to a prompt, greedily.

    Attributes:
      tokens: the new tokens.
      steps: float32[steps, V], the logits that chose each of them.
      sequence: float32[S, V], the logits of prompt and new tokens in one pass without a cache.
    """

    tokens: tuple[int, ...]
    steps: np.ndarray
    sequence: np.ndarray


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What became of two answers' logits, bit for bit.

    Attributes:
      bit_equal: whether every logit has the same bits.
      max_abs_difference: over all logits; None where a difference is not finite.
      tokens_equal: whether the same tokens were chosen.
      divergence: KL(reference || answer) of the predictions at a position, in nats, the mean over
        the sequence; None where it is not finite.
      logits: how many were compared.
    """

    bit_equal: bool
    max_abs_difference: float | None
    tokens_equal: bool
    divergence: float | None
    logits: int


def sequence_logits(model: Model, tokens: Sequence[int], implementation: str) -> np.ndarray:
    """float32[S, V]: the logits at every position of one sequence, in one pass."""
    batch = jnp.asarray([tokens], jnp.int32)
    return np.asarray(logits(model, batch, implementation=implementation))[0]


def reference_answer(
    model: Model, prompt: Sequence[int], new_tokens: int, implementation: str
) -> Answer:
    """The answer of a model in plain bf16."""
    generator = Generator(model, implementation=implementation, max_tokens=len(prompt) + new_tokens)
    steps = list(generator.run(prompt, new_tokens, keep_logits=True))
    tokens = tuple(step.token for step in steps)
    by_step = np.stack([np.asarray(step.logits) for step in steps])
    return Answer(tokens, by_step, sequence_logits(model, [*prompt, *tokens], implementation))


def compare(answer: Answer, reference: Answer) -> Comparison:
    """Compares two answers to one prompt; `answer` was made to follow the reference's tokens.

    `answer.tokens` are the tokens that it would have chosen itself.
    """
    differences = [
        _compare(answer.steps, reference.steps),
        _compare(answer.sequence, reference.sequence),
    ]
    divergence = _divergence(answer.sequence, reference.sequence)
    largest = float(np.max([difference for _, difference in differences]))
    return Comparison(
        bit_equal=all(equal for equal, _ in differences),
        max_abs_difference=largest if np.isfinite(largest) else None,
        tokens_equal=answer.tokens == reference.tokens,
        divergence=divergence if np.isfinite(divergence) else None,
        logits=answer.steps.size + answer.sequence.size,
    )


def is_inexact(summary: Mapping[str, Any]) -> bool:
    """Whether a finished point's logits differ from bf16's though its codec is lossless."""
    # Records from before there were lossy codecs do not say so.
    return summary["exact"]["bit_equal"] is False and not summary["codec"].get("lossy", False)


def _compare(one: np.ndarray, other: np.ndarray) -> tuple[bool, float]:
    """Whether all bits are equal, and the largest absolute difference."""
    if np.array_equal(one.view(np.uint32), other.view(np.uint32)):
        return True, 0.0
    with np.errstate(invalid="ignore"):
        return False, float(np.abs(one.astype(np.float64) - other).max())


def _divergence(one: np.ndarray, other: np.ndarray) -> float:
    """KL(other || one) in nats, the mean over rows of logits float32[S, V]."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        own, its = (_log_probabilities(each.astype(np.float64)) for each in (one, other))
        return float(np.sum(np.exp(its) * (its - own), axis=-1).mean())


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
