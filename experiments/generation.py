"""Generates with a model under a cache: once to warm up, once measured, once along given tokens."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from codecjax.cache import CacheObject
from codecjax.generate import Generator, resolve_activations
from codecjax.models.model import Model
from experiments.calibrate import Calibration
from experiments.figures import Line, TableFigures, step_figures, table_figures
from experiments.traffic import WeightTraffic, device_bytes_in_use

# Steps of the run that loads what is loaded at first use, before anything is measured.
_WARM_UP_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that decides what is generated, and how.

    Attributes:
      model: the model.
      objects: what the cache holds, one object a matrix, with their costs.
      prompt: token ids.
      new_tokens: steps of the run.
      policy, budget_bytes: of the cache.
      implementation: of the ops.
    """

    model: Model
    objects: Sequence[CacheObject]
    prompt: tuple[int, ...]
    new_tokens: int
    policy: str
    budget_bytes: int
    implementation: str

    def generator(self, steps: int) -> Generator:
        """A generator with an empty cache that will make `steps` steps."""
        return Generator(
            self.model,
            budget_bytes=self.budget_bytes,
            policy=self.policy,
            implementation=self.implementation,
            # Equal for every run of the setting, so that all share their compiled functions.
            max_tokens=len(self.prompt) + self.new_tokens,
            objects=self.objects,
            steps=steps,
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """One measured generation.

    Attributes:
      lines: the record of each step.
      tokens: the new tokens.
      compile_seconds: to compile prefill and decode, 0 where an earlier run had compiled them.
      pages_bytes, kv_bytes: bytes of the page pool and of the KV cache.
      device_bytes: what the device held at the end, and who counted it.
      implementations: that ran, by op.
    """

    lines: list[Line]
    tokens: tuple[int, ...]
    compile_seconds: float
    pages_bytes: int
    kv_bytes: int
    device_bytes: tuple[int, str]
    implementations: dict[str, str]


def kv_position_bytes(setting: Setting) -> int:
    """Bytes of one position's keys and values, over all layers."""
    config = setting.model.config
    dtype = jnp.dtype(resolve_activations(None, setting.implementation))
    return 2 * config.layers * config.kv_heads * config.head_dim * dtype.itemsize


def warm_up(setting: Setting) -> float:
    """Compiles and runs a few steps that nobody measures; returns seconds spent compiling."""
    steps = min(_WARM_UP_STEPS, setting.new_tokens)
    generator = setting.generator(steps)
    seconds = generator.compile(len(setting.prompt))
    for _ in generator.run(setting.prompt, steps):
        pass
    return seconds


def generate(
    setting: Setting,
    calibration: Calibration,
    traffic: WeightTraffic,
    tell: Callable[[Line], None],
) -> Run:
    """Generates greedily, and tells of every step as it is done."""
    compile_seconds = warm_up(setting)
    generator = setting.generator(setting.new_tokens)
    pages = generator.residency.pages
    pages_bytes, pool = (0, 0) if pages is None else (pages.nbytes, pages.shape[0])
    del pages
    position_bytes = kv_position_bytes(setting)
    lines: list[Line] = []
    tokens: list[int] = []
    device_bytes = (0, "")
    table: TableFigures | None = None
    for number, step in enumerate(generator.run(setting.prompt, setting.new_tokens)):
        read = position_bytes * (len(setting.prompt) + number)
        if table is None or table.page_table is not step.plan.page_table:
            table = table_figures(step.plan.page_table, calibration, traffic)
        line = step_figures(number, step, pool, table, read)
        lines.append(line)
        tokens.append(step.token)
        tell(line)
        if number + 1 == setting.new_tokens:
            # The run still holds all that it needs.
            device_bytes = device_bytes_in_use()
    return Run(
        lines,
        tuple(tokens),
        compile_seconds,
        pages_bytes,
        generator.kv_nbytes,
        device_bytes,
        generator.implementations,
    )


def follow(setting: Setting, tokens: Sequence[int]) -> np.ndarray:
    """float32[steps, V]: the logits of the steps that make `tokens`, whatever they would choose."""
    generator = setting.generator(len(tokens))
    steps = generator.run(setting.prompt, len(tokens), forced_tokens=tokens, keep_logits=True)
    return np.stack([np.asarray(step.logits) for step in steps])
