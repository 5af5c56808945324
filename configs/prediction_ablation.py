"""What it saves to predict int8 weights from their neighbours, on trained and on random rows.

Command:
    python -m experiments.run --config=configs/prediction_ablation.py
Expected time: about a minute on two CPU cores.
Expected result: no prediction pays; `ablation.json` and `report.md` in
`runs/prediction_ablation`.
"""

from ml_collections.config_dict import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    # Which experiment the other fields are of.
    config.kind = "prediction_ablation"

    config.model = ConfigDict()
    # A Hugging Face folder.
    config.model.path = "experiments/embedded_model"
    # 10, 11 or 12: each matrix has a table, whose bytes count where matrices are small.
    config.model.probability_bits = 10

    config.random = ConfigDict()
    config.random.rows = 1024
    # Weights of a row, as many as the embedded model's have and as many as a large one's: the
    # longer a row, the rarer are values near its largest.
    config.random.row_lengths = (256, 4096)
    # Of Student's t; the other rows are Gaussian.
    config.random.degrees_of_freedom = 4.0
    config.random.seed = 0
    config.random.probability_bits = 12

    config.codec = ConfigDict()
    config.codec.scale_bits = 16
    # The embedded model's key and value matrices have 128 rows, which this tile does not pad.
    config.codec.tile_rows = 128
    config.codec.tile_columns = 256
    return config
