"""Slope timing measures what the device does, not what a call costs."""

import jax.numpy as jnp
import pytest

from experiments import timing


def test_repeat_applies_the_function_to_each_input_in_turn() -> None:
    inputs = [jnp.full(3, value) for value in (1.0, 2.0)]
    outputs = timing.repeat(lambda x: x + 1, 5)(inputs)
    assert [float(output[0]) for output in outputs] == [2, 3, 2, 3, 2]


def test_no_application_is_shared_or_left_out() -> None:
    # Equal inputs would let the compiler compute one product for all of them.
    text = timing.repeat(lambda x: x @ x, 4).lower([jnp.ones((8, 8))]).compile().as_text()
    assert text.count("dot(") == 4 or text.count("custom-call") == 4


def test_the_fixed_cost_of_a_call_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {1: 0.5 + 1 * 0.01, 3: 0.5 + 3 * 0.01}
    monkeypatch.setattr(timing, "seconds_of", lambda call: costs[call()])
    calls = {count: (lambda count=count: count) for count in costs}
    assert timing.slope(calls, repeats=3) == pytest.approx(0.01)


def test_noise_gives_an_upper_estimate_and_nothing_negative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = {1: 0.9, 3: 0.6}
    monkeypatch.setattr(timing, "seconds_of", lambda call: costs[call()])
    calls = {count: (lambda count=count: count) for count in costs}
    assert timing.slope(calls, repeats=3) == pytest.approx(0.2)


def test_slower_functions_take_longer() -> None:
    x = jnp.ones((256, 256))

    def products(count: int) -> float:
        def function(y: jnp.ndarray) -> jnp.ndarray:
            for _ in range(count):
                y = y @ x
            return y

        return timing.slope_seconds(function, [x], counts=(1, 5))

    assert products(20) > products(1)


def test_counts_must_rise() -> None:
    with pytest.raises(ValueError, match="rise"):
        timing.slope_seconds(lambda x: x, [jnp.ones(1)], counts=(3, 3))


def test_copy_bandwidth_is_that_of_a_memory() -> None:
    assert 1e8 < timing.copy_bandwidth(array_bytes=2**22, repeats=3) < 1e14
