"""The figures of a point: one line a step while it runs, and sums over its steps."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from codecjax.cache import CacheObject
from codecjax.generate import GeneratedStep
from experiments.bounds import hit_rates, offline_optimum, step_cost
from experiments.calibrate import Calibration
from experiments.traffic import WeightTraffic

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TableFigures:
    """What follows from a page table alone; it outlives most steps, which are timed with this.

    Attributes:
      page_table: int32[TILES].
      decode_seconds_per_tile: mean over the tiles that the table leaves to be decoded.
      weight_bytes: bytes of weights that a step must read.
    """

    page_table: np.ndarray
    decode_seconds_per_tile: float | None
    weight_bytes: float


def table_figures(
    page_table: np.ndarray, calibration: Calibration, traffic: WeightTraffic
) -> TableFigures:
    """The figures of a page table on a model with this calibration and traffic."""
    return TableFigures(
        page_table, calibration.seconds_per_tile(page_table), traffic.step_bytes(page_table)
    )


def step_figures(
    number: int, step: GeneratedStep, pages: int, table: TableFigures, kv_bytes: float
) -> Line:
    """The record of one step.

    Args:
      number: 0 for the prefill.
      step: what the generator says of it.
      pages: P, pages of the pool.
      table: of the step's page table.
      kv_bytes: bytes of the KV cache that the step had to read.
    """
    plan = step.plan
    return {
        "step": number,
        "token": step.token,
        "seconds": step.seconds,
        "hits": plan.hits,
        "misses": plan.misses,
        "byte_hits": plan.byte_hits,
        "bytes": plan.bytes,
        "cost_hits": plan.cost_hits,
        "cost": plan.cost,
        "tiles_expected": plan.tiles_expected,
        "tiles_decoded": step.tiles_decoded,
        "decode_seconds_per_tile": table.decode_seconds_per_tile,
        "bytes_to_read": table.weight_bytes + kv_bytes,
        "pages_held": plan.pages_held,
        "pages": pages,
    }


def time_figures(lines: Sequence[Line]) -> dict[str, float | None]:
    """Speed: the first token apart, then means and the median over the later steps."""
    later = [line["seconds"] for line in lines[1:]]
    mean = statistics.fmean(later) if later else None
    return {
        "tokens_per_second": 1 / mean if mean else None,
        "seconds_per_token": mean,
        "median_seconds_per_token": statistics.median(later) if later else None,
        "first_token_seconds": lines[0]["seconds"],
    }


def hit_figures(lines: Sequence[Line], objects: Sequence[CacheObject]) -> dict[str, float | None]:
    """Hit rates over all steps."""
    sums = {key: sum(line[key] for line in lines) for key in lines[0] if "hits" in key}
    rates = hit_rates(
        sums["hits"],
        sums["byte_hits"],
        sums["cost_hits"],
        accesses=sum(line["hits"] + line["misses"] for line in lines),
        byte_count=sum(line["bytes"] for line in lines),
        cost=len(lines) * step_cost(objects),
    )
    return {"object": rates.object, "byte": rates.byte, "cost": rates.cost}


def bound_figures(
    lines: Sequence[Line],
    objects: Sequence[CacheObject],
    page_bytes: int,
    budget_bytes: int,
    bandwidth: float,
) -> dict[str, float | None]:
    """The best that could be: offline optima of the hit rates, and a floor for the time.

    Args:
      lines: of all steps.
      objects: what the cache holds, empty ones left out.
      page_bytes: bytes of one page.
      budget_bytes: of the cache.
      bandwidth: bytes a second of a large copy on this device.
    """
    best = offline_optimum(objects, page_bytes, len(lines), budget_bytes)
    later = [line["bytes_to_read"] for line in lines[1:]]
    read = statistics.fmean(later) if later else None
    return {
        "object": best.object,
        "byte": best.byte,
        "cost": best.cost,
        "bytes_to_read_per_token": read,
        "copy_bytes_per_second": bandwidth,
        "seconds_per_token": read / bandwidth if read is not None else None,
    }


def tile_figures(lines: Sequence[Line], objects: Sequence[CacheObject]) -> dict[str, Any]:
    """Tiles decoded, as the kernels counted them, against what the plans said."""
    return {
        "cacheable": sum(len(item.tiles) for item in objects),
        "decoded": sum(line["tiles_decoded"] for line in lines),
        "decoded_last_step": lines[-1]["tiles_decoded"],
        "as_planned": all(line["tiles_decoded"] == line["tiles_expected"] for line in lines),
    }
