"""The fields of every config, with their defaults: one point on the embedded model.

Command (one point, about half a minute on two CPU cores):
    python -m experiments.run --config=configs/base.py
Expected: the embedded model, compressed, with a quarter of its weights kept decoded; its
logits are bit-equal to bf16.
"""

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.model = ConfigDict()
    # A Hugging Face folder or a codecjax checkpoint ...
    config.model.path = "experiments/embedded_model"
    # ... or, where the path is empty, random weights in the shapes of this name.
    config.model.shapes = "tinyllama"
    config.model.seed = 0

    config.codec = ConfigDict()
    config.codec.name = "window"
    # Only for codec "window": 8, 11 or 16 exponents a window; and, where it is above 0, how many
    # bits a weight all projections together have at most: as many of them as that takes have 8.
    config.codec.width = 11
    config.codec.most_bits = 0.0
    # Only for codecs "rans" and "int8_rans": 10, 11 or 12 bits of a probability.
    config.codec.probability_bits = 12
    # Only for codec "ecsq", which is lossy: 2 to 8 bits a weight, everything included, or, where
    # it is above 0, the mean squared error of a weight.
    config.codec.bits_per_weight = 4.0
    config.codec.mse = 0.0
    # Only for codec "int8_rans", which is lossy: how values are predicted from their neighbours,
    # "none", "left", "top", "avg" or "planar", or "best" where each tile has a choice; and 16 or
    # 32 bits of a row's scale.
    config.codec.prediction = "none"
    config.codec.scale_bits = 16
    config.codec.tile_rows = 256
    config.codec.tile_columns = 256

    config.cache = ConfigDict()
    config.cache.policy = "pinned"
    # Bytes for decoded weights, as a share of all decoded weights from 0 to 1 ...
    config.cache.budget_fraction = 0.25
    # ... or, where set, in bytes.
    config.cache.budget_bytes = config_dict.placeholder(int)
    # What a miss costs: "tiles" (in proportion to its tiles) or "measured" (seconds, timed
    # on this device before the run).
    config.cache.costs = "tiles"

    config.run = ConfigDict()
    # A text, for models with a tokenizer. Where it is empty: seeded random token ids.
    config.run.prompt = "def _check("
    config.run.prompt_tokens = 8
    # Every step is one model step: the first new token comes from the prefill.
    config.run.new_tokens = 32
    config.run.seed = 0
    # "xla", "mosaic_gpu", or unset for the fastest that can run here.
    config.run.implementation = config_dict.placeholder(str)
    config.run.check_exactness = True

    config.report = ConfigDict()
    config.report.title = "One point"
    # What the report tells its reader about the experiment before the results.
    config.report.about = ""
    # Whether the report answers the original notes on TinyLlama line by line.
    config.report.original_notes = False
    return config
