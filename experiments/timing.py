"""How things are timed here: by slope, with rotating inputs.

One jitted call has a fixed dispatch cost that a single timing would count. So n1 and n2
applications of a function are timed, each in one jit, and the slope between them is the time
of one application.
"""

import concurrent.futures
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Bytes of the array that is copied, and passes over it: larger than any last-level cache.
_COPY_BYTES = {"gpu": 2**30, "cpu": 2**28}
_COPY_PASSES = (2, 10)


def repeat(function: Callable[[Any], Any], count: int) -> jax.stages.Wrapped:
    """One jitted call that applies `function` `count` times, to each of its inputs in turn.

    Each application waits for the one before it, so that none is shared or left out.
    """

    def applications(inputs: Sequence[Any]) -> list[Any]:
        outputs: list[Any] = []
        for index in range(count):
            argument = inputs[index % len(inputs)]
            if outputs:
                argument, outputs[-1] = jax.lax.optimization_barrier((argument, outputs[-1]))
            outputs.append(function(argument))
        return outputs

    return jax.jit(applications)


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds from the call of `call` until all arrays that it returned are ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def slope(calls: dict[int, Callable[[], Any]], repeats: int) -> float:
    """Seconds of one application, from calls that apply n1 < n2 times (the dict's keys)."""
    for call in calls.values():
        jax.block_until_ready(call())
    samples: dict[int, list[float]] = {count: [] for count in calls}
    for _ in range(repeats):
        for count, call in calls.items():
            samples[count].append(seconds_of(call))
    (fewer, first), (more, second) = sorted(
        (count, statistics.median(seconds)) for count, seconds in samples.items()
    )
    difference = (second - first) / (more - fewer)
    return difference if difference > 0 else second / more


def compiled_calls(
    function: Callable[[Any], Any],
    inputs: Sequence[Any],
    counts: tuple[int, int],
    compiler: concurrent.futures.Executor,
) -> dict[int, Callable[[], Any]]:
    """What `slope` takes, being compiled by `compiler`; a first call waits for that.

    Args:
      function, inputs, counts: as in `slope_seconds`.
      compiler: makes several measurements compile at once; wait for all before timing one.
    """
    inputs = tuple(inputs)

    def start(count: int) -> Callable[[], Any]:
        executable = compiler.submit(repeat(function, count).lower(inputs).compile)
        return lambda: executable.result()(inputs)

    return {count: start(count) for count in counts}


def slope_seconds(
    function: Callable[[Any], Any],
    inputs: Sequence[Any],
    counts: tuple[int, int] = (1, 3),
    repeats: int = 5,
) -> float:
    """Seconds that one application of `function` takes on the device.

    Args:
      function: traceable; takes one pytree and returns a pytree of arrays, all of which count.
      inputs: pytrees that the applications take in rotation; together they should exceed the
        device's caches if the function is to be measured reading from memory.
      counts: (n1, n2) applications, n1 < n2. All their outputs are alive at once.
      repeats: timings of each count; the medians are used.

    Returns:
      (t2 - t1) / (n2 - n1), or t2 / n2, which is larger than the truth, where the machine was
      so noisy that the slope is not positive.
    """
    if not 0 < counts[0] < counts[1]:
        raise ValueError(f"counts must rise from at least 1, not {counts}")
    inputs = tuple(inputs)
    return slope({n: functools.partial(repeat(function, n), inputs) for n in counts}, repeats)


def copy_bandwidth(array_bytes: int | None = None, repeats: int = 5) -> float:
    """Bytes a second, read plus written, when a large array is rewritten on the device.

    Args:
      array_bytes: bytes of the array; by default 1 GiB on a GPU, 256 MiB on a CPU.
      repeats: timings, of which the median counts.
    """
    size = (array_bytes or _COPY_BYTES.get(jax.default_backend(), _COPY_BYTES["cpu"])) // 4

    # Adding one makes each pass a copy that the compiler can't leave out. The array is donated:
    # fresh memory would be timed with the system's work of handing it out.
    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
    def rewrite(array: jax.Array, passes: int) -> jax.Array:
        return jax.lax.fori_loop(0, passes, lambda _, value: value + 1, array)

    # Random bits: a device may copy an array of equal values faster.
    held = [jax.random.bits(jax.random.key(0), (size,), jnp.uint32)]

    def timed(passes: int) -> jax.Array:
        held[0] = rewrite(held[0], passes)
        return held[0]

    seconds = slope({n: functools.partial(timed, n) for n in _COPY_PASSES}, repeats)
    return 2 * 4 * size / seconds
