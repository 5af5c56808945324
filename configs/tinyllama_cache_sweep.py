"""TinyLlama-1.1B's exact shapes: what a cache of decoded weights buys on a GPU.

Command:
    python -m experiments.run --config=configs/tinyllama_cache_sweep.py
Expected time: about five minutes on an H200. On a CPU it runs too, for hours: use
`--config.run.new_tokens=2` there.
Expected result: every point is bit-equal to bf16; at 20/155 of the weights the best possible
hit rate is 12.9 % and LRU has none; the report answers the original notes line by line.
"""

from typing import Any

from ml_collections.config_dict import ConfigDict

from configs import base

# 22 layers of 7 matrices, and the head.
MATRICES = 155
# The size of the cache in the original notes.
NOTED = 20


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.path = ""
    config.model.shapes = "tinyllama"
    config.run.prompt = ""
    config.run.prompt_tokens = 8
    config.run.new_tokens = 64
    config.report.title = "TinyLlama-1.1B under a cache budget"
    config.report.about = (
        "TinyLlama-1.1B's exact shapes with seeded random weights, stored as 256 x 256 tiles "
        "in the window codec. Between one token and the next a budget of device memory keeps "
        "some matrices decoded; the sweep raises it from nothing to everything. Random "
        "weights have no tokenizer, so the prompt is eight seeded random tokens: the text "
        "means nothing, the work is that of the real model."
    )
    config.report.original_notes = True
    return config


def get_sweep() -> list[dict[str, Any]]:
    def window(label: str, fraction: float, policy: str = "pinned") -> dict[str, Any]:
        return {
            "name": f"window, {label}",
            "cache.policy": policy,
            "cache.budget_fraction": fraction,
        }

    noted = NOTED / MATRICES
    return [
        {"name": "bf16", "codec.name": "bf16", "cache.budget_fraction": 0.0},
        {
            "name": "bf16, xla",
            "codec.name": "bf16",
            "cache.budget_fraction": 0.0,
            "run.implementation": "xla",
        },
        window("nothing kept", 0.0),
        window(f"{NOTED}/{MATRICES} kept", noted),
        window(f"{NOTED}/{MATRICES} kept, lru", noted, "lru"),
        window("25 % kept", 0.25),
        window("50 % kept", 0.5),
        window("85 % kept", 0.85),
        window("all kept", 1.0),
    ]
