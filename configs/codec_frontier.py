"""Bits, speed and quality of every codec and rate, with nothing and all kept decoded.

Command:
    python -m experiments.run --config=configs/codec_frontier.py
Expected time: about fifteen minutes on two CPU cores, most of it compiling.
On a GPU, for the speed of TinyLlama's shapes (codecs that have no kernels there are left out):
    python -m experiments.run --config=configs/codec_frontier.py --config.model.path= \\
        --config.run.prompt= --config.quality.measure=false --config.codec.tile_rows=256 \\
        --config.codec.probability_bits=12
Expected result: lossless codecs predict as bf16 does, to the last bit; of the lossy ones `ecsq`
diverges from it the less the more bits it has; `report.md`, `frontier.json` and `frontier.png` in
`runs/codec_frontier`.
"""

from typing import Any

from ml_collections.config_dict import ConfigDict

from configs import base

FRACTIONS = (0.0, 1.0)
CODECS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((f"window {width}", {"codec.name": "window", "codec.width": width}) for width in (8, 11, 16)),
    ("rans", {"codec.name": "rans"}),
    ("int8_rans", {"codec.name": "int8_rans"}),
    *(
        (f"ecsq {rate:g}", {"codec.name": "ecsq", "codec.bits_per_weight": rate})
        for rate in (6.0, 5.0, 4.0, 3.0, 2.0)
    ),
)


def get_config() -> ConfigDict:
    config = base.get_config()
    # Which experiment this is.
    config.kind = "codec_frontier"

    config.quality = ConfigDict()
    # Whether perplexity and divergence on held-out modules are measured, once a codec. Random
    # weights have none worth measuring.
    config.quality.measure = True
    # Of each held-out module so many characters are read, from its beginning.
    config.quality.characters = 2000

    # Each matrix has tables, whose bytes count where matrices are small.
    config.codec.probability_bits = 10
    # The embedded model's key and value matrices have 128 rows, which this tile does not pad.
    config.codec.tile_rows = 128
    config.run.new_tokens = 16
    config.report.title = "Bits, speed and quality of every codec"
    config.report.about = (
        "The same model is stored by each codec, at several rates where it has any, and run with "
        "nothing and all of its weights kept decoded. Marked are the Pareto fronts: the "
        "points that no other point beats in one figure without losing in the other."
    )
    return config


def get_sweep() -> list[dict[str, Any]]:
    baseline = {"name": "bf16", "codec.name": "bf16", "cache.budget_fraction": 0.0}
    return [baseline] + [
        {"name": f"{name}, {100 * fraction:g} % kept", **fields, "cache.budget_fraction": fraction}
        for name, fields in CODECS
        for fraction in FRACTIONS
    ]
