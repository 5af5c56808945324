"""nvCOMP's ANS codec on one matrix, in a process of its own: `bench_nvcomp` starts it.

    python -m experiments.bench_nvcomp_process BITS.npy COUNT REPEATS

BITS.npy has bit patterns uint16[OUT, K], which are decoded COUNT times a call, of which REPEATS are
timed. JAX may not ask for the device here: nvCOMP would lose it. Prints a JSON list with an object
for every setting that was tried: seconds, spread, bytes, rotated_bytes and exact.
"""

import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from experiments.timing import Timing, slope

_CHUNKS = (2**16, 2**18)
_POLICIES = ("CONCURRENCY", "LATENCY")
# nvCOMP's mode for numbers of 16 bits.
_DATA_TYPE = "<f2"
# Copies of the compressed matrix that are decoded in turn.
COPIES = 2
# Rounds over them that are started without waiting in between, for the slope.
_CALLS = (1, 5)

# Once a codec is deleted, nvCOMP finds no device or crashes: none is, before the process ends.
_ALIVE: list["Decoder"] = []


class Decoder:
    """Copies of a matrix that nvCOMP compressed, which it decodes in turn, in one stream."""

    def __init__(self, bits: np.ndarray, options: Mapping[str, Any]) -> None:
        """Compresses the bit patterns uint16[OUT, K]; `options` are those of nvcomp.Codec."""
        import cupy
        from nvidia import nvcomp

        self._wanted = bits.reshape(-1).view(np.uint8)
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._codec = nvcomp.Codec(
            algorithm="ANS", data_type=_DATA_TYPE, cuda_stream=self._stream.ptr, **options
        )
        plain = cupy.asarray(self._wanted)
        cupy.cuda.Device().synchronize()
        source = nvcomp.as_array(plain, self._stream.ptr)
        self._compressed = [self._codec.encode(source) for _ in range(COPIES)]
        self.outputs = [cupy.empty(self._wanted.size, cupy.uint8) for _ in range(COPIES)]
        self._configs = [self._codec.decompression_config(each) for each in self._compressed]
        self._stream.synchronize()

    @property
    def nbytes(self) -> int:
        return int(self._compressed[0].buffer_size)

    def exact(self) -> bool:
        self.run(COPIES)
        return all(np.array_equal(output.get(), self._wanted) for output in self.outputs)

    def run(self, count: int) -> None:
        """Decodes `count` times and waits for the device."""
        for index in range(count):
            copy = index % COPIES
            self._codec.decode(
                self._compressed[copy],
                data_type="|u1",
                out=self.outputs[copy],
                decompression_config=self._configs[copy],
            )
        self._stream.synchronize()

    def time(self, count: int, repeats: int) -> Timing:
        """The timing of one decode, of `count` in a call."""
        calls: dict[int, Callable[[], Any]] = {
            number: functools.partial(self.run, number * count) for number in _CALLS
        }
        return slope(calls, repeats).over(count)


def _options() -> Iterator[dict[str, Any]]:
    """Chunk sizes and policies that are tried; the fastest counts."""
    from nvidia import nvcomp

    for chunk, policy in itertools.product(_CHUNKS, _POLICIES):
        yield {
            "uncomp_chunk_size": chunk,
            "execution_policy": getattr(nvcomp.ExecutionPolicy, policy),
        }


def measure(bits: np.ndarray, count: int, repeats: int) -> list[dict[str, Any]]:
    """What every setting gave, for bit patterns uint16[OUT, K]."""
    found = []
    for options in _options():
        decoder = Decoder(bits, options)
        _ALIVE.append(decoder)
        exact, timing = decoder.exact(), decoder.time(count, repeats)
        found.append(
            {
                "seconds": timing.seconds,
                "spread": timing.spread,
                "bytes": decoder.nbytes,
                "rotated_bytes": COPIES * decoder.nbytes,
                "exact": exact,
            }
        )
    return found


if __name__ == "__main__":
    print(
        json.dumps(measure(np.load(sys.argv[1], allow_pickle=False), *map(int, sys.argv[2:]))),
        flush=True,
    )
    # Not by way of nvCOMP's own end, at which the interpreter crashes.
    os._exit(0)
