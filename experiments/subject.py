"""What a point runs on: its model and its prompt."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections.config_dict import ConfigDict

import codecjax
from codecjax.cache import CacheObject, budget_from_fraction, pool_pages
from codecjax.errors import UserError
from codecjax.models.model import Model
from codecjax.models.parameters import parameters
from codecjax.models.random_weights import random_model
from codecjax.tiles import page_bytes
from experiments.configuration import codec_options, tile_of
from experiments.shapes import SHAPES


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids that a run begins with, and their text, empty where there is no tokenizer."""

    tokens: tuple[int, ...]
    text: str


def model_key(config: ConfigDict, codec: str) -> tuple[Any, ...]:
    """Equal for two configs whose models, stored by `codec`, are the same."""
    options = tuple(sorted(codec_options(config).items())) if codec == config.codec.name else ()
    model = config.model
    source = (model.path,) if model.path else ("", model.shapes, model.seed)
    return (*source, codec, options, tile_of(config))


def load_model(config: ConfigDict, codec: str | None = None) -> Model:
    """Reads or makes the model that the config names.

    Args:
      config: of a point.
      codec: stores the weights instead of the config's codec; with that codec's defaults.
    """
    codec = codec or config.codec.name
    options = codec_options(config) if codec == config.codec.name else {}
    tile = tile_of(config)
    if config.model.path:
        return codecjax.load(config.model.path, codec=codec, tile=tile, **options)
    return random_model(SHAPES[config.model.shapes], config.model.seed, codec, tile, options)


def model_name(config: ConfigDict) -> str:
    """What reports call the model."""
    if config.model.path:
        return str(config.model.path).rstrip("/").rsplit("/", 1)[-1]
    return f"{config.model.shapes} shapes with random weights (seed {config.model.seed})"


def make_prompt(config: ConfigDict, model: Model) -> Prompt:
    """The config's prompt in tokens of the model.

    Raises:
      UserError: a text for a model without a tokenizer, an empty prompt, or one that leaves
        no room for the new tokens.
    """
    text = config.run.prompt
    if not text:
        draw = np.random.default_rng(config.run.seed)
        tokens = draw.integers(0, model.config.vocab_size, config.run.prompt_tokens).tolist()
    elif model.tokenizer is None:
        raise UserError(
            f"the model has no tokenizer for run.prompt {text!r}: "
            "set run.prompt to an empty text for random token ids"
        )
    else:
        tokens = list(model.tokenizer.encode(text).ids)
    if not tokens:
        raise UserError(f"run.prompt {text!r} has no tokens: give a longer text")
    wanted = len(tokens) + config.run.new_tokens
    if wanted > model.config.context:
        raise UserError(
            f"a prompt of {len(tokens)} tokens and run.new_tokens {config.run.new_tokens} exceed "
            f"the model's context of {model.config.context}: "
            f"set run.new_tokens to at most {max(0, model.config.context - len(tokens))}"
        )
    return Prompt(tuple(tokens), text)


def text_of(model: Model, tokens: tuple[int, ...]) -> str:
    """The tokens as text; empty without a tokenizer."""
    return "" if model.tokenizer is None else model.tokenizer.decode(list(tokens))


def budget_bytes(config: ConfigDict, objects: list[CacheObject]) -> int:
    """The config's cache budget, in bytes of whole pages.

    Raises:
      UserError: a budget that is negative, above everything, or smaller than a page.
    """
    page = page_bytes(tile_of(config))
    if config.cache.budget_bytes is None:
        return budget_from_fraction(config.cache.budget_fraction, objects, page)
    return pool_pages(config.cache.budget_bytes, page) * page


def check_against_model(config: ConfigDict, model: Model) -> None:
    """Finds what does not fit between a point and its model, whatever codec stores that.

    Raises:
      UserError: the prompt or the number of new tokens is impossible, or the budget is.
    """
    make_prompt(config, model)
    rows, columns = tile_of(config)
    tiles = sum(
        -(-each.shape[0] // rows) * -(-each.shape[1] // columns)
        for each in parameters(model.config)
        if each.projection
    )
    if config.codec.name != "bf16":
        budget_bytes(config, [CacheObject("all matrices", np.arange(tiles, dtype=np.int32), 1.0)])


def describe_model(config: ConfigDict, model: Model) -> dict[str, Any]:
    """What the summary of a point says about its model."""
    facts: Mapping[str, Any] = {
        "name": model_name(config),
        "parameters": model.bf16_nbytes // 2,
        "matrices": len(model.matrices),
        "layers": model.config.layers,
        "tiles": model.tile_count,
        "cast": None if model.cast is None else str(model.cast),
    }
    return dict(facts)
