"""Slope timing measures what the device does, not what a call costs."""

import concurrent.futures
import time
from collections.abc import Iterator

import jax
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
    result = timing.slope(calls, repeats=3)
    assert result.seconds == pytest.approx(0.01)
    assert result.spread == pytest.approx(0, abs=1e-9)


def test_the_median_estimate_and_the_spread_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([0.0, 2.0, 0.0, 4.0, 0.0, 6.0, 0.0, 8.0, 0.0, 100.0])
    monkeypatch.setattr(timing, "seconds_of", lambda call: next(durations))
    result = timing.slope({1: lambda: None, 3: lambda: None}, repeats=5)
    assert result.seconds == 3
    assert result.spread == pytest.approx((4 - 2) / 3)
    assert result.over(10) == timing.Timing(0.3, result.spread)


def test_noise_gives_an_upper_estimate_and_nothing_negative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = {1: 0.9, 3: 0.6}
    monkeypatch.setattr(timing, "seconds_of", lambda call: costs[call()])
    calls = {count: (lambda count=count: count) for count in costs}
    assert timing.slope(calls, repeats=3).seconds == pytest.approx(0.2)


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


@pytest.fixture
def compiler() -> Iterator[concurrent.futures.Executor]:
    with concurrent.futures.ThreadPoolExecutor() as executor:
        yield executor


def test_a_repeated_call_takes_its_inputs_in_turn_and_hands_on_what_they_leave(
    compiler: concurrent.futures.Executor,
) -> None:
    inputs = [jnp.full(3, value) for value in (1.0, 2.0)]
    call = timing.Repeated(lambda x, total: (x + 1, total + x), inputs, 5, compiler, jnp.zeros(3))
    assert [float(output[0]) for output in call()] == [2, 3, 2, 3, 2]
    assert float(call.carried[0]) == 7
    call(2)
    assert float(call.carried[0]) == 21


def test_a_repeated_call_keeps_its_buffers(compiler: concurrent.futures.Executor) -> None:
    call = timing.Repeated(lambda x, carried: (x + 1, carried), [jnp.ones(1000)], 2, compiler)
    addresses = [output.unsafe_buffer_pointer() for output in call()]
    assert [output.unsafe_buffer_pointer() for output in call(3)] == addresses


def test_no_application_of_a_repeated_call_is_left_out(
    compiler: concurrent.futures.Executor,
) -> None:
    def product(x: jax.Array, carried: None) -> tuple[jax.Array, None]:
        return x @ x, carried

    call = timing.Repeated(product, [jnp.ones((8, 8))], 4, compiler)
    text = call._executable.result().as_text()
    assert text.count("dot(") == 4 or text.count("custom-call") == 4


def test_what_is_only_handed_on_is_waited_for(
    compiler: concurrent.futures.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call without outputs of its own is not over when it returns."""
    waited: list[int] = []
    monkeypatch.setattr(
        timing.jax, "block_until_ready", lambda arrays: waited.append(len(jax.tree.leaves(arrays)))
    )
    call = timing.Repeated(
        lambda x, total: ((), total + x), [jnp.ones(3)], 2, compiler, jnp.ones(3)
    )
    call.time(repeats=1)
    assert waited
    assert set(waited) == {1}


def test_the_host_has_no_share_in_what_runs_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert timing.host_share(lambda: time.sleep(0.02)) > 0.9
    monkeypatch.setattr(timing.jax, "block_until_ready", lambda arrays: time.sleep(0.02))
    assert timing.host_share(lambda: None) < 0.5


def test_a_call_is_timed_by_what_ran_between_the_longest_gaps() -> None:
    kernels = [
        (200.0, 202.0),
        (0.0, 1.0),
        (1.5, 2.0),
        (100.0, 101.0),
        (101.0, 103.0),
        (203.0, 204.0),
    ]
    assert timing.spans(kernels, 3) == [2.0, 3.0, 4.0]
    assert timing.spans(kernels, 1) == [204.0]


def test_where_there_is_no_gpu_its_profiler_has_seen_nothing() -> None:
    assert timing.profiled(lambda: jnp.ones(3) + 1, repeats=2) is None


def test_where_the_host_sets_the_pace_the_profiler_is_asked(
    compiler: concurrent.futures.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, free = (
        timing.Repeated(lambda x, carried: (x + 1, carried), [jnp.ones(3)], 2, compiler)
        for _ in range(2)
    )
    seen = timing.Timing(3.0, 0.0, timing.PROFILER)
    monkeypatch.setattr(timing.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(timing, "profiled", lambda call, repeats: seen)
    monkeypatch.setattr(timing, "host_share", lambda call: 0.9)
    assert bound.time(repeats=1) == timing.Timing(1.5, 0.0, timing.PROFILER)
    monkeypatch.setattr(timing, "host_share", lambda call: 0.1)
    assert free.time(repeats=1).method == timing.SLOPE
    # So that what is compared with them has the same method.
    assert bound.time(repeats=1, by_profiler=False).method == timing.SLOPE
    assert free.time(repeats=1, by_profiler=True).method == timing.PROFILER
