"""What tests of experiments share: records of points that never ran, a bandwidth soon measured."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from codecjax.cache import cyclic_trace, simulate
from experiments import timing
from experiments.records import PointRecords

MATRICES = 155
TILES = 100
PAGE_BYTES = 131072


def fake_steps(policy: str, held: int, steps: int, seconds: float) -> list[dict[str, Any]]:
    """Steps of a model of `MATRICES` equal matrices, with the hits that the policy has."""
    movements = simulate(
        policy, cyclic_trace(MATRICES, steps), [1] * MATRICES, None, held
    ).movements
    lines = []
    for step in range(steps):
        hits = sum(movement.hit for movement in movements[step * MATRICES : (step + 1) * MATRICES])
        missed = TILES * (MATRICES - hits)
        lines.append(
            {
                "step": step,
                "seconds": seconds * (20 if step == 0 else 1 + 0.01 * (step % 3)),
                "hits": hits,
                "misses": MATRICES - hits,
                "byte_hits": hits * TILES * PAGE_BYTES,
                "bytes": MATRICES * TILES * PAGE_BYTES,
                "cost_hits": float(hits),
                "cost": float(MATRICES),
                "tiles_expected": missed,
                "tiles_decoded": missed,
                "decode_seconds_per_tile": 2e-6,
                "pages_held": held * TILES,
                "pages": held * TILES,
            }
        )
    return lines


def fake_point(
    name: str,
    codec: str = "window",
    policy: str = "pinned",
    held: int = 20,
    steps: int = 12,
    seconds: float = 0.01,
    status: str = "finished",
) -> PointRecords:
    """A point whose cache has room for `held` of 155 equal matrices."""
    environment = {
        "python": "3.12.1",
        "jax": "0.11.2",
        "device": "fake device",
        "backend": "cpu",
        "implementations": {"matmul": "xla", "decode": "xla"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "command": "python -m experiments.run --config=configs/fake.py",
        "time_utc": "2026-01-01T00:00:00+00:00",
    }
    config = {"codec": {"name": codec}, "cache": {"policy": policy}}
    if status == "failed":
        failure = {
            "status": status,
            "name": name,
            "error": "out of <memory>",
            "user_error": None,
            "traceback": "Traceback (most recent call last): ...",
        }
        return PointRecords(config, environment, [], failure)
    cached = codec != "bf16"
    held = held if cached else 0
    lines = fake_steps(policy if cached else "none", held, steps, seconds)
    best = simulate("min_bypass", cyclic_trace(MATRICES, steps), [1] * MATRICES, None, held)
    rate = sum(line["hits"] for line in lines) / (MATRICES * steps)
    pages = held * TILES
    bf16_bytes = MATRICES * TILES * PAGE_BYTES
    weights = int(bf16_bytes * (11.6 / 16 if cached else 1))
    summary = {
        "status": status,
        "name": name,
        "model": {"name": "fake model", "parameters": 10**9, "matrices": MATRICES, "layers": 22},
        "codec": {
            "name": codec,
            "options": {"width": 11} if cached else {},
            "bits_per_weight": 11.6 if cached else 16.0,
            "compressed_matrices": MATRICES if cached else 0,
        },
        "cache": {
            "policy": policy,
            "costs": "tiles",
            "budget_bytes": pages * PAGE_BYTES,
            "budget_fraction": held / MATRICES,
            "pages": pages,
            "pages_held": pages,
        },
        "tokens": {"prompt": 8, "generated": steps, "prompt_text": "def ", "text": "f(<x>):"},
        "time": {
            "tokens_per_second": 1 / seconds,
            "seconds_per_token": seconds,
            "first_token_seconds": 20 * seconds,
            "decode_seconds_per_tile": 2e-6 if cached else None,
            "compile_seconds": 3.0,
        },
        "bytes": {
            "weights": weights,
            "pages": pages * PAGE_BYTES,
            "kv": 10**7,
            "total": weights + pages * PAGE_BYTES + 10**7,
            "measured": weights + pages * PAGE_BYTES + 10**7 + 1000,
            "measured_by": "live arrays",
            "bf16_weights": bf16_bytes,
        },
        "hits": dict.fromkeys(("object", "byte", "cost"), rate if cached else None),
        "bound": {
            **dict.fromkeys(("object", "byte", "cost"), best.object_hit_rate if cached else None),
            "seconds_per_token": seconds / 3,
        },
        "tiles": {
            "cacheable": MATRICES * TILES if cached else 0,
            "decoded_last_step": lines[-1]["tiles_decoded"],
            "as_planned": True,
        },
        "exact": {
            "bit_equal": True,
            "max_abs_difference": 0.0,
            "tokens_equal": True,
            "logits": 640,
        },
        "implementations": {"matmul": "xla", "decode": "xla"},
        "device": "fake device",
    }
    return PointRecords(config, environment, lines, summary)


@pytest.fixture
def make_point() -> Callable[..., PointRecords]:
    return fake_point


@pytest.fixture(autouse=True, scope="module")
def _bandwidth_is_soon_measured() -> Iterator[None]:
    """Of a small array, which a cache may hold: nobody asks here how fast this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(timing._COPY_BYTES, "cpu", 2**22)
        yield
