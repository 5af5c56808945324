"""Every cache policy at two budgets, on the embedded model.

Command:
    python -m experiments.run --config=configs/embedded_policies.py
Expected time: about three minutes on two CPU cores.
Expected result: `lru`, `fifo` and `lfu` hit nothing, because a dense model touches every
matrix once a step; `pinned` equals the offline optimum; `none` and `all` are the ends.
"""

from typing import Any

from ml_collections.config_dict import ConfigDict

from configs import base

FRACTIONS = (0.25, 0.5)
POLICIES = ("pinned", "lru", "fifo", "lfu", "belady", "min_bypass")


def get_config() -> ConfigDict:
    config = base.get_config()
    config.run.new_tokens = 16
    config.report.title = "Cache policies on the embedded model"
    config.report.about = (
        "Who decides which decoded weights stay? Each policy gets the same two budgets. "
        "belady and min_bypass know the future and serve as a measure; none and all keep "
        "nothing and everything, whatever the budget."
    )
    return config


def get_sweep() -> list[dict[str, Any]]:
    ends = [
        {"name": "bf16", "codec.name": "bf16", "cache.budget_fraction": 0.0},
        {"name": "none", "cache.policy": "none", "cache.budget_fraction": 0.0},
        {"name": "all", "cache.policy": "all", "cache.budget_fraction": 1.0},
    ]
    return ends + [
        {
            "name": f"{policy}, {fraction:.0%}",
            "cache.policy": policy,
            "cache.budget_fraction": fraction,
        }
        for fraction in FRACTIONS
        for policy in POLICIES
    ]
