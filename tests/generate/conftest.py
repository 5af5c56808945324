"""The model of these tests, by codec."""

import pytest

from codecjax.models.random_weights import random_model
from tests.generate.small_model import CONFIG, TILE


@pytest.fixture(scope="module")
def models():
    """The same weights by codec and width."""
    options = {"bf16": ("bf16", {})}
    options |= {f"window{width}": ("window", {"width": width}) for width in (8, 11, 16)}
    options |= {name: (name, {"probability_bits": 10}) for name in ("rans", "int8_rans")}
    return {
        name: random_model(CONFIG, 0, codec, TILE, chosen)
        for name, (codec, chosen) in options.items()
    }


@pytest.fixture(scope="module")
def model(models):
    return models["window11"]
