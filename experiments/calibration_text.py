"""Calibration texts: which parts of one a model reads, and what they say of its input columns."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from codecjax.errors import UserError
from codecjax.io.huggingface import HuggingFaceFolder
from codecjax.models.calibration import calibration_windows, input_importance
from codecjax.models.parameters import to_tree
from experiments.bits_per_byte import token_ids
from experiments.stdlib_corpus import Corpus
from experiments.train_embedded import separator_of

# Parts of a text that are read, and the most tokens of each.
_WINDOWS = 256
_LONGEST = 2048


def tokens_of_file(path: str, folder: HuggingFaceFolder) -> np.ndarray:
    """int32[N, S]: parts of a text in UTF-8, as the model reads it; UserError if it cannot be."""
    if folder.tokenizer is None:
        raise UserError("the model has no tokenizer.json: --calibration cannot be read without it")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--calibration {path} cannot be read ({error}): give a text in UTF-8"
        ) from error
    return _parts(np.array(folder.tokenizer.encode(text).ids, np.int32), folder)


def training_tokens(corpus: Corpus, folder: HuggingFaceFolder) -> np.ndarray:
    """int32[N, S]: parts of what the embedded model learned from."""
    if folder.tokenizer is None:
        raise UserError("the model has no tokenizer.json: texts cannot be read without it")
    separator = separator_of(folder.tokenizer)
    return _parts(token_ids(folder.tokenizer, corpus.train.values(), separator), folder)


def _parts(ids: np.ndarray, folder: HuggingFaceFolder) -> np.ndarray:
    return calibration_windows(ids, min(folder.config.context, _LONGEST), _WINDOWS)


def importance_of(folder: HuggingFaceFolder, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """`input_importance` of a folder's model on tokens int32[N, S]."""
    weights = {name: jnp.asarray(weight) for name, weight in folder.weights.items()}
    return input_importance(folder.config, to_tree(folder.config, weights), tokens)
