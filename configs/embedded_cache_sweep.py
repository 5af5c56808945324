"""The main job on a laptop: cache budgets from nothing to everything, on the embedded model.

Command:
    python -m experiments.run --config=configs/embedded_cache_sweep.py
Expected time: about two minutes on two CPU cores.
Expected result: every point is bit-equal to bf16; the share of weights read without a decode
follows the budget and equals the offline optimum at each; `report.html` in
`runs/embedded_cache_sweep`.
"""

from typing import Any

from ml_collections.config_dict import ConfigDict

from configs import base

FRACTIONS = (0.0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)


def get_config() -> ConfigDict:
    config = base.get_config()
    config.report.title = "Cache budgets on the embedded model"
    config.report.about = (
        "A small trained Llama writes Python. Its weights are stored compressed, and between "
        "one token and the next a budget of device memory keeps some of them decoded. The "
        "sweep raises that budget from nothing to everything; the first point stores plain "
        "bf16 and is what the others are compared with."
    )
    return config


def get_sweep() -> list[dict[str, Any]]:
    baseline = {"name": "bf16", "codec.name": "bf16", "cache.budget_fraction": 0.0}
    budgets = [
        {"name": f"window, {100 * fraction:g} % kept", "cache.budget_fraction": fraction}
        for fraction in FRACTIONS
    ]
    return [baseline, *budgets]
