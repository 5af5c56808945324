"""Sums, movements and error messages of `simulate`, and the traces."""

import random
from typing import Any

import numpy as np
import pytest

from codecjax.cache import POLICIES, cyclic_trace, simulate, zipf_trace
from codecjax.errors import UserError


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "all"])
@pytest.mark.parametrize("seed", range(4))
def test_movements_explain_the_sums(policy: str, seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 50) for _ in range(30)]
    costs = [draw.uniform(-0.2, 1) for _ in range(30)]
    trace = draw.choices(range(30), k=600)
    budget = draw.randint(40, 500)
    run = simulate(policy, trace, sizes, costs, budget)
    resident: set[int] = set()
    peak = 0
    hits = []
    for accessed, movement in zip(trace, run.movements, strict=True):
        assert movement.object_id == accessed
        assert movement.hit == (accessed in resident)
        assert not (movement.hit and movement.admitted)
        assert set(movement.evicted) <= resident
        assert movement.bytes_out == sum(sizes[victim] for victim in movement.evicted)
        assert movement.bytes_in == (sizes[accessed] if movement.admitted else 0)
        resident -= set(movement.evicted)
        if movement.admitted:
            resident.add(accessed)
        if movement.hit:
            hits.append(accessed)
        peak = max(peak, sum(sizes[held] for held in resident))
        assert peak <= budget
    assert run.peak_bytes == peak
    assert run.accesses == 600
    assert run.hits == len(hits)
    assert run.byte_hits == sum(sizes[hit] for hit in hits)
    assert run.cost_hits == pytest.approx(sum(costs[hit] for hit in hits))
    assert run.object_hit_rate == run.hits / 600
    assert run.byte_hit_rate == run.byte_hits / sum(sizes[accessed] for accessed in trace)
    assert run.cost_hit_rate == pytest.approx(
        run.cost_hits / sum(costs[accessed] for accessed in trace)
    )


def test_numpy_arguments_and_an_empty_trace() -> None:
    budget: Any = np.int64(5)
    run = simulate("lru", np.array([0, 1, 0]), np.array([2, 3]), np.array([0.5, 1.0]), budget)
    assert (run.hits, run.byte_hits, run.cost_hits) == (1, 2, 0.5)
    empty = simulate("pinned", [], [], None, 0)
    assert (empty.accesses, empty.object_hit_rate, empty.byte_hit_rate, empty.cost_hit_rate) == (
        0,
        0,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mru", [0], [1], None, 1), ["'mru'", *POLICIES]),
        (("lru", [0], [1], None, -1), ["-1", "negative"]),
        (("lru", [0], [1], None, 1.5), ["1.5", "integer"]),
        (("lru", [0], [0], None, 1), ["object 0", "0 bytes"]),
        (("lru", [0], [2, -3], None, 1), ["object 1", "-3 bytes"]),
        (("lru", [0], [2.5], None, 1), ["object 0", "2.5"]),
        (("lru", [0, 2], [1, 1], None, 1), ["object 2", "0 to 1"]),
        (("lru", [-1], [1, 1], None, 1), ["object -1", "0 to 1"]),
        (("lru", [0.5], [1], None, 1), ["float64", "whole object ids"]),
        (("lru", [[0]], [1], None, 1), ["(1, 1)", "flat"]),
        (("lru", [0], [1], [1.0, 2.0], 1), ["2 costs", "1 sizes"]),
        (("lru", [0], [1], [float("nan")], 1), ["object 0", "finite"]),
        (("all", [0], [4, 5], None, 8), ["9 bytes", "8", "raise the budget"]),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        simulate(*arguments)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_cyclic_trace() -> None:
    assert cyclic_trace(3, 2).tolist() == [0, 1, 2, 0, 1, 2]
    assert cyclic_trace(0, 2).tolist() == []
    with pytest.raises(UserError, match="-1 steps"):
        cyclic_trace(3, -1)


def test_zipf_trace_draws_different_experts_of_each_layer() -> None:
    trace = zipf_trace(layers=3, experts=8, top=4, steps=200, exponent=1.2, seed=5)
    steps = trace.reshape(200, 3, 4)
    assert (steps // 8 == np.arange(3)[:, None]).all()
    assert all(len(set(layer.tolist())) == 4 for step in steps for layer in step)
    counts = np.bincount(trace, minlength=24).reshape(3, 8)
    assert (counts.max(axis=1) > 3 * counts.min(axis=1)).all()
    np.testing.assert_array_equal(trace, zipf_trace(3, 8, 4, 200, exponent=1.2, seed=5))
    assert (trace != zipf_trace(3, 8, 4, 200, exponent=1.2, seed=6)).any()
    with pytest.raises(UserError, match="9 of 8 experts"):
        zipf_trace(1, 8, 9, 1)
