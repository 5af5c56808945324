"""Runs one point: loads its model, generates, compares with bf16, sums up."""

import dataclasses
import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections.config_dict import ConfigDict

import kernels_pallas
from codecjax.cache import CacheObject
from codecjax.codecs import is_lossy
from codecjax.models.model import Model, cache_objects
from codecjax.tiles import page_bytes
from experiments import environment, figures
from experiments.calibrate import Calibration, calibrate_decode, with_calibrated_costs
from experiments.configuration import Point
from experiments.exactness import Answer, compare, reference_answer, sequence_logits
from experiments.generation import Run, Setting, follow, generate
from experiments.progress import RunProgress
from experiments.records import FINISHED, PointRecords, plain
from experiments.subject import (
    budget_bytes,
    check_against_model,
    describe_model,
    load_model,
    make_prompt,
    model_key,
    text_of,
)
from experiments.timing import copy_bandwidth
from experiments.traffic import WeightTraffic, weight_traffic


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A model in device memory, and what was found out about it.

    Attributes:
      key: of `model_key`.
      model: the model.
      traffic: of its weights.
      calibrations: by implementation.
      objects: what a cache holds, with measured costs, by implementation.
      sequences: logits of whole sequences, by implementation and tokens.
    """

    key: tuple[Any, ...]
    model: Model
    traffic: WeightTraffic
    calibrations: dict[str, Calibration] = dataclasses.field(default_factory=dict)
    objects: dict[str, Sequence[CacheObject]] = dataclasses.field(default_factory=dict)
    sequences: dict[tuple[Any, ...], np.ndarray] = dataclasses.field(default_factory=dict)


class PointRunner:
    """Runs points one after another; consecutive points share a model where they can.

    At most one model is in device memory. Of the bf16 model that the others are compared with
    only the answers are kept.
    """

    def __init__(self) -> None:
        self._held: _Loaded | None = None
        self._references: dict[tuple[Any, ...], Answer] = {}
        self._bandwidth: float | None = None

    def check(self, first: ConfigDict, asked: ConfigDict) -> None:
        """Loads the model of the point `first`, and finds out whether `asked` fits that model.

        Raises:
          UserError: the model cannot be loaded, or the prompt, number of tokens or budget of
            `asked` is impossible on it.
        """
        check_against_model(asked, self._load(first, first.codec.name).model)

    def run(self, point: Point, progress: RunProgress) -> PointRecords:
        """Runs a point and returns its records; raises whatever goes wrong."""
        config = point.config
        implementation = kernels_pallas.resolve(config.run.implementation)
        if self._bandwidth is None:
            progress.note("times a copy in device memory")
            self._bandwidth = copy_bandwidth()
        reference = None
        if config.run.check_exactness:
            progress.note("computes the answer of plain bf16")
            reference = self._reference(config, implementation)
        progress.note("loads and encodes the weights")
        loaded = self._load(config, config.codec.name)
        progress.note("times the decoding of tiles")
        calibration = self._calibration(loaded, implementation)
        setting = Setting(
            model=loaded.model,
            objects=self._objects(loaded, config.cache.costs, implementation),
            prompt=make_prompt(config, loaded.model).tokens,
            new_tokens=config.run.new_tokens,
            policy=config.cache.policy,
            budget_bytes=budget_bytes(config, cache_objects(loaded.model)),
            implementation=implementation,
        )
        progress.note("compiles")
        run = generate(setting, calibration, loaded.traffic, progress.step)
        exact = _NOT_CHECKED
        if reference is not None:
            progress.note("compares the logits with those of bf16")
            exact = self._exactness(loaded, setting, run, reference)
        summary = {
            "status": FINISHED,
            "name": point.name,
            **_summary(config, setting, run, calibration, self._bandwidth),
            "exact": exact,
            "implementations": run.implementations,
            "device": environment.device_name(),
        }
        return PointRecords(
            config=plain(config.to_dict()),
            environment=plain(environment.describe(run.implementations)),
            steps=plain(run.lines),
            summary=plain(summary),
        )

    def _load(self, config: ConfigDict, codec: str) -> _Loaded:
        key = model_key(config, codec)
        if self._held is None or self._held.key != key:
            # The old model makes room before the new one comes.
            self._held = None
            gc.collect()
            model = load_model(config, codec)
            self._held = _Loaded(key, model, weight_traffic(model))
        return self._held

    def _reference(self, config: ConfigDict, implementation: str) -> Answer:
        """What plain bf16 answers, computed once for all points that ask the same."""
        run = config.run
        asked = (run.prompt, run.prompt_tokens, run.seed, run.new_tokens)
        key = (model_key(config, "bf16"), implementation, asked)
        if key not in self._references:
            model = self._load(config, "bf16").model
            prompt = make_prompt(config, model)
            self._references[key] = reference_answer(
                model, prompt.tokens, run.new_tokens, implementation
            )
        return self._references[key]

    def _calibration(self, loaded: _Loaded, implementation: str) -> Calibration:
        if implementation not in loaded.calibrations:
            loaded.calibrations[implementation] = calibrate_decode(loaded.model, implementation)
        return loaded.calibrations[implementation]

    def _objects(self, loaded: _Loaded, costs: str, implementation: str) -> Sequence[CacheObject]:
        objects = cache_objects(loaded.model)
        if costs != "measured":
            return objects
        if implementation not in loaded.objects:
            loaded.objects[implementation] = with_calibrated_costs(
                objects, loaded.model, implementation
            )
        return loaded.objects[implementation]

    def _exactness(
        self, loaded: _Loaded, setting: Setting, run: Run, reference: Answer
    ) -> dict[str, Any]:
        # The measured run keeps no logits, which would slow it down: the same steps once more.
        steps = follow(setting, reference.tokens)
        tokens = setting.prompt + reference.tokens
        key = (setting.implementation, tokens)
        if key not in loaded.sequences:
            loaded.sequences[key] = sequence_logits(setting.model, tokens, setting.implementation)
        answer = Answer(run.tokens, steps, loaded.sequences[key])
        return dataclasses.asdict(compare(answer, reference))


_NOT_CHECKED: dict[str, Any] = {
    "bit_equal": None,
    "max_abs_difference": None,
    "tokens_equal": None,
    "divergence": None,
    "logits": 0,
}


def _summary(
    config: ConfigDict, setting: Setting, run: Run, calibration: Calibration, bandwidth: float
) -> dict[str, Any]:
    model, page = setting.model, page_bytes(setting.model.tile)
    occupied = [item for item in setting.objects if len(item.tiles)]
    decoded_bytes = page * sum(len(item.tiles) for item in occupied)
    measured, measured_by = run.device_bytes
    return {
        "model": describe_model(config, model),
        "codec": {
            "name": model.codec,
            "options": model.options,
            "tile": model.tile,
            "bits_per_weight": model.bits_per_weight,
            "lossy": is_lossy(model.codec),
            "compressed_matrices": len(occupied),
        },
        "cache": {
            "policy": setting.policy,
            "costs": config.cache.costs,
            "budget_bytes": setting.budget_bytes,
            "budget_fraction": setting.budget_bytes / decoded_bytes if decoded_bytes else 0.0,
            "pages": run.lines[-1]["pages"],
            "pages_held": run.lines[-1]["pages_held"],
        },
        "tokens": {
            "prompt": len(setting.prompt),
            "generated": len(run.tokens),
            "prompt_text": config.run.prompt,
            "text": text_of(model, run.tokens),
        },
        "time": {
            **figures.time_figures(run.lines),
            "decode_seconds_per_tile": calibration.mean_tile_seconds,
            "compile_seconds": run.compile_seconds,
        },
        "bytes": {
            "weights": model.nbytes,
            "pages": run.pages_bytes,
            "kv": run.kv_bytes,
            "total": model.nbytes + run.pages_bytes + run.kv_bytes,
            "measured": measured,
            "measured_by": measured_by,
            "bf16_weights": model.bf16_nbytes,
        },
        "hits": figures.hit_figures(run.lines, occupied),
        "bound": figures.bound_figures(run.lines, occupied, page, setting.budget_bytes, bandwidth),
        "tiles": figures.tile_figures(run.lines, occupied),
    }
