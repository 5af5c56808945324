"""Generation on a GPU: the kernels inside the jitted steps, with pages in place."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from codecjax.generate import GeneratedStep, Generator, logits
from codecjax.models.config import LlamaConfig
from codecjax.models.model import Model
from codecjax.models.random_weights import random_model
from codecjax.tiles import page_bytes
from kernels_pallas.implementations import MOSAIC_GPU, XLA

pytestmark = pytest.mark.gpu

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=512,
    intermediate_size=1024,
    layers=2,
    heads=8,
    kv_heads=4,
    head_dim=64,
    context=128,
)
TILE = (256, 256)
PROMPT = [3, 1, 4, 1, 5]
NEW = 12


def model(codec: str, tied: bool = False) -> Model:
    return random_model(dataclasses.replace(CONFIG, tied=tied), 0, codec, TILE, {})


def run(model: Model, policy: str, pages: int) -> list[GeneratedStep]:
    generator = Generator(
        model,
        max_tokens=len(PROMPT) + NEW,
        budget_bytes=pages * page_bytes(TILE),
        policy=policy,
        implementation=MOSAIC_GPU,
        steps=NEW,
    )
    assert generator.implementations == {
        "matmul": MOSAIC_GPU,
        "decode": MOSAIC_GPU,
        "attention": "triton",
        "lookup": XLA if model.codec == "bf16" else MOSAIC_GPU,
    }
    return list(generator.run(PROMPT, NEW, keep_logits=True))


@pytest.fixture(scope="module")
def baseline() -> list[GeneratedStep]:
    return run(model("bf16"), "none", 0)


@pytest.mark.parametrize(
    ("policy", "pages"), [("none", 0), ("pinned", 20), ("lru", 20), ("belady", 20), ("all", 76)]
)
def test_every_step_is_bit_equal_to_bf16_and_counts_its_decodes(
    baseline: list[GeneratedStep], policy: str, pages: int
) -> None:
    steps = run(model("window"), policy, pages)
    for step, expected in zip(steps, baseline, strict=True):
        assert step.token == expected.token
        chex.assert_trees_all_equal(np.asarray(step.logits), np.asarray(expected.logits))
        assert step.tiles_decoded == step.plan.tiles_expected
    assert (steps[-1].plan.hits > 0) == (policy in ("pinned", "belady", "all"))
    if policy == "all":
        assert steps[-1].tiles_decoded == 0


@pytest.mark.parametrize("codec", ["window", "rans"])
def test_tied_models_are_bit_equal_to_bf16(codec: str) -> None:
    expected = run(model("bf16", tied=True), "none", 0)
    found = run(model(codec, tied=True), "all", 76)
    for step, wanted in zip(found, expected, strict=True):
        chex.assert_trees_all_equal(np.asarray(step.logits), np.asarray(wanted.logits))
    assert found[-1].tiles_decoded == 0


def test_whole_sequences_are_bit_equal_to_bf16() -> None:
    tokens = np.random.default_rng(0).integers(0, 512, (2, 40))
    one, other = (
        np.asarray(logits(model(codec), tokens, implementation=MOSAIC_GPU))
        for codec in ("bf16", "window")
    )
    chex.assert_trees_all_equal(one, other)


def test_the_page_pool_takes_the_budget_and_no_more() -> None:
    compressed, device = model("window"), jax.devices()[0]
    before = device.memory_stats()["bytes_in_use"]
    generator = Generator(
        compressed,
        max_tokens=17,
        budget_bytes=30 * page_bytes(TILE),
        policy="lru",
        implementation=MOSAIC_GPU,
        steps=NEW,
    )
    for _ in generator.run(PROMPT, NEW):
        # A step in flight computes with memory of its own.
        jax.block_until_ready(jax.live_arrays())
        held = device.memory_stats()["bytes_in_use"] - before - generator.kv_nbytes
        # Page table, record of decoded units and the report are small beside the pool.
        assert held <= 33 * page_bytes(TILE)
