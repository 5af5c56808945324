"""How things are timed here: by slope, with rotating inputs.

One jitted call has a fixed dispatch cost that a single timing would count. So n1 and n2
applications of a function are timed and the slope between them is the time of one application.
`slope_seconds` compiles one call for each number; `Repeated` compiles a single call, which is
dispatched several times without waiting in between. Where a GPU is done before the host can
dispatch more, the slope would be the host's, and `Repeated` asks the GPU's profiler instead.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

SLOPE, PROFILER, WALL_CLOCK = "slope", "profiler", "wall clock"
# Share of a call's time from which the host may have been what took so long.
_MOST_HOST_SHARE = 0.5
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


@dataclasses.dataclass(frozen=True)
class Timing:
    """What repeated measurements of one thing gave.

    Attributes:
      seconds: of one application: the median of the estimates.
      spread: interquartile range of the estimates over their median.
      method: SLOPE, PROFILER or WALL_CLOCK.
    """

    seconds: float
    spread: float
    method: str = SLOPE

    def over(self, applications: int) -> "Timing":
        """The timing of one of so many applications that were timed as one."""
        return dataclasses.replace(self, seconds=self.seconds / applications)


def summary(estimates: Sequence[float], method: str = SLOPE) -> Timing:
    """Median and spread of estimates of one duration, in seconds."""
    median = statistics.median(estimates)
    if len(estimates) < 2 or median <= 0:
        return Timing(median, 0.0, method)
    first, _, third = statistics.quantiles(estimates, n=4, method="inclusive")
    return Timing(median, (third - first) / median, method)


def slope(calls: Mapping[int, Callable[[], Any]], repeats: int) -> Timing:
    """The timing of one application, from calls that apply n1 < n2 times (the mapping's keys).

    Every repetition gives an estimate. Where the machine was so noisy that their median is not
    positive, they are t2 / n2 instead, which is larger than the truth.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    fewer, more = sorted(calls)
    firsts, seconds = [], []
    for _ in range(repeats):
        firsts.append(seconds_of(calls[fewer]))
        seconds.append(seconds_of(calls[more]))
    slopes = [
        (second - first) / (more - fewer) for first, second in zip(firsts, seconds, strict=True)
    ]
    result = summary(slopes)
    return result if result.seconds > 0 else summary([second / more for second in seconds])


class Repeated:
    """One compiled call that applies a function to its inputs in turn, `count` times in all.

    A call's outputs take the place of those of the call before, and what the applications hand
    on is updated in place: on a GPU, where XLA records a call's kernels once and replays them,
    kernels whose buffers have moved are recorded anew.
    """

    # Calls that are dispatched without waiting in between, for the slope.
    _CALLS = (1, 5)

    def __init__(
        self,
        function: Callable[[Any, Any], tuple[Any, Any]],
        inputs: Sequence[Any],
        count: int,
        compiler: concurrent.futures.Executor,
        carried: Any = None,
    ) -> None:
        """Traces the call and lets `compiler` compile it; the first use waits for that.

        Args:
          function: (input, carried) -> (output, carried), traceable; pytrees of arrays.
          inputs: that the applications take in rotation; together they should exceed the
            device's caches if the function is to be measured reading from memory.
          count: applications in a call. All their outputs are alive at once.
          compiler: makes several calls compile at once; wait for all before timing one.
          carried: what the first application is handed; donated.
        """
        self._inputs, self._count, self.carried = tuple(inputs), count, carried

        def applications(inputs: Any, before: Any, carried: Any) -> tuple[list[Any], Any]:
            del before
            outputs: list[Any] = []
            for index in range(count):
                argument = inputs[index % len(inputs)]
                if outputs:
                    argument, outputs[-1] = jax.lax.optimization_barrier((argument, outputs[-1]))
                output, carried = function(argument, carried)
                outputs.append(output)
            return outputs, carried

        self._shapes, _ = jax.eval_shape(applications, self._inputs, (), carried)
        # An unused input would be dropped, and the output that replaces it put elsewhere.
        jitted = jax.jit(applications, donate_argnums=(1, 2), keep_unused=True)
        traced = jitted.trace(self._inputs, self._shapes, carried)
        self.jaxpr = traced.jaxpr
        self._executable = compiler.submit(traced.lower().compile)
        self._outputs: list[Any] | None = None

    def __call__(self, calls: int = 1) -> list[Any]:
        """Outputs of all applications of the last of so many calls, which may still run.

        They are good until the next call.
        """
        executable, outputs = self._executable.result(), self._outputs
        if outputs is None:
            outputs = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), self._shapes)
        for _ in range(calls):
            outputs, self.carried = executable(self._inputs, outputs, self.carried)
        self._outputs = outputs
        return outputs

    def time(self, repeats: int, by_profiler: bool | None = None) -> Timing:
        """The timing of one application.

        Args:
          repeats: of the measurement.
          by_profiler: whether to ask the profiler if there is one, as for what is compared with
            this; None asks where the host takes too long to dispatch.
        """
        found = None
        if self.host_bound if by_profiler is None else by_profiler:
            found = profiled(functools.partial(self._all, 1), repeats)
        if found is None:
            calls = {number: functools.partial(self._all, number) for number in self._CALLS}
            found = slope(calls, repeats)
        return found.over(self._count)

    @functools.cached_property
    def host_share(self) -> float:
        """See `host_share`, of several calls."""
        return host_share(functools.partial(self._all, max(self._CALLS)))

    @property
    def host_bound(self) -> bool:
        """Whether a slope would be the time of the host."""
        return self.host_share > _MOST_HOST_SHARE

    def _all(self, calls: int) -> Any:
        """Everything that so many calls leave, to be waited for."""
        return self(calls), self.carried


def host_share(call: Callable[[], Any]) -> float:
    """Share of a call's time until it returns, while its arrays may not be ready yet.

    Near 1 the device may have waited for the host, and then a timing is the host's.
    """
    jax.block_until_ready(call())
    start = time.perf_counter()
    arrays = call()
    returned = time.perf_counter()
    jax.block_until_ready(arrays)
    return (returned - start) / (time.perf_counter() - start)


def profiled(call: Callable[[], Any], repeats: int) -> Timing | None:
    """The timing of a call by the GPU's profiler, or None without a GPU or where it saw nothing.

    It is the time from the start of the call's first kernel to the end of its last. The call is
    made once more than `repeats`.
    """
    if jax.default_backend() != "gpu":
        return None
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(repeats):
                jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        kernels = [
            (event.start_ns, event.start_ns + event.duration_ns)
            for plane in planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]
    if len(kernels) < repeats:
        return None
    return summary([1e-9 * nanoseconds for nanoseconds in spans(kernels, repeats)], PROFILER)


def spans(intervals: Sequence[tuple[float, float]], groups: int) -> list[float]:
    """Lengths of groups of (start, end): the longest gaps are those between groups."""
    intervals = sorted(intervals)
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(intervals)]
    longest = sorted(range(len(gaps)), key=gaps.__getitem__)[len(gaps) - groups + 1 :]
    cuts = [0, *sorted(gap + 1 for gap in longest), len(intervals)]
    return [
        intervals[last - 1][1] - intervals[first][0] for first, last in itertools.pairwise(cuts)
    ]


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
      repeats: timings of each count.

    Returns:
      The median slope, see `slope`.
    """
    if not 0 < counts[0] < counts[1]:
        raise ValueError(f"counts must rise from at least 1, not {counts}")
    inputs = tuple(inputs)
    calls = {n: functools.partial(repeat(function, n), inputs) for n in counts}
    return slope(calls, repeats).seconds


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

    pass_time = slope({n: functools.partial(timed, n) for n in _COPY_PASSES}, repeats)
    return 2 * 4 * size / pass_time.seconds
