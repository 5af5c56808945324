"""DFloat11 as a peer: its own kernel, run through CuPy on what `bench_dfloat11_format` makes.

Of the package `dfloat11` only the file decode.ptx is used: importing it would pull in a whole
training stack.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from codecjax.errors import UserError
from experiments.bench_dfloat11_format import THREADS, Compressed, compress
from experiments.bench_matrices import applications
from experiments.bench_rows import Row
from experiments.bench_settings import repeats
from experiments.timing import Timing, slope

NAME = "dfloat11"
PACKAGE_FILE = "decode.ptx"

# Copies of the compressed matrix that are decoded in turn.
_COPIES = 2
# Rounds over them that are started without waiting in between, for the slope.
_CALLS = (1, 5)


def kernel_file() -> Path:
    """The decode.ptx of the package, which is not imported.

    Raises:
      UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(NAME)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if Path(folder, PACKAGE_FILE).is_file():
            return Path(folder, PACKAGE_FILE)
    raise UserError(
        f"{PACKAGE_FILE} of package {NAME} was not found: pip install 'codecjax[bench]'"
    )


class Decoder:
    """The kernel with copies of a compressed matrix in device memory, which it decodes in turn.

    Everything runs in one stream of PyTorch's.
    """

    def __init__(self, compressed: Compressed) -> None:
        import cupy
        import torch

        self._stream = torch.cuda.Stream()
        self._cupy_stream = cupy.cuda.ExternalStream(self._stream.cuda_stream)
        self._decode = cupy.RawModule(path=str(kernel_file())).get_function("decode")
        most = int(np.diff(compressed.positions.astype(np.int64)).max())
        # A counter of every thread, their sum, and the block's weights.
        self._shared_bytes = 4 * THREADS + 4 + 2 * most
        self._decode.max_dynamic_shared_size_bytes = self._shared_bytes
        self._blocks = compressed.positions.size - 1
        self._sizes = (
            np.int32(compressed.tables.shape[0]),
            np.int32(compressed.codes.size),
            np.int32(compressed.signs_mantissas.size),
        )
        arrays = (
            compressed.tables,
            compressed.codes,
            compressed.signs_mantissas,
            compressed.positions.view(np.int32),
            compressed.gaps,
        )
        self._inputs = [
            [torch.from_numpy(array).cuda() for array in arrays] for _ in range(_COPIES)
        ]
        self.outputs = [
            torch.empty(compressed.shape, dtype=torch.bfloat16, device="cuda")
            for _ in range(_COPIES)
        ]
        torch.cuda.synchronize()

    def exact(self, bits: np.ndarray) -> bool:
        """Whether every copy decodes to the bit patterns uint16[OUT, K]."""
        import torch

        self.run(_COPIES, lambda output: None)
        wanted = torch.from_numpy(bits.view(np.int16)).cuda()
        return all(bool((output.view(torch.int16) == wanted).all()) for output in self.outputs)

    def run(self, count: int, use: Callable[[Any], None]) -> None:
        """Decodes `count` times, does `use` with each output, and waits for the device."""
        import torch

        with torch.cuda.stream(self._stream), self._cupy_stream:
            for index in range(count):
                copy = index % _COPIES
                pointers = [
                    np.uint64(array.data_ptr())
                    for array in (*self._inputs[copy], self.outputs[copy])
                ]
                self._decode(
                    (self._blocks,),
                    (THREADS,),
                    (*pointers, *self._sizes),
                    shared_mem=self._shared_bytes,
                )
                use(self.outputs[copy])
        self._stream.synchronize()

    def time(self, moved_bytes: int, use: Callable[[Any], None]) -> Timing:
        """The timing of one decode and of what `use` does with it."""
        count = applications(_COPIES, moved_bytes)
        calls: dict[int, Callable[[], Any]] = {
            number: functools.partial(self.run, number * count, use) for number in _CALLS
        }
        return slope(calls, repeats()).over(count)


def decode_row(name: str, w: jax.Array, baselines: Mapping[str, float]) -> Row:
    """DFloat11's dense decode of bf16[OUT, K]."""
    return _row("decode", name, w, None, baselines)


def matmul_row(name: str, w: jax.Array, x: jax.Array, baselines: Mapping[str, float]) -> Row:
    """DFloat11's decode of bf16[OUT, K], and cuBLAS's product of x bf16[N, K] with the result."""
    return _row("matmul", name, w, x, baselines)


def _row(
    suite: str, name: str, w: jax.Array, x: jax.Array | None, baselines: Mapping[str, float]
) -> Row:
    bits = np.asarray(w).view(np.uint16)
    compressed = compress(bits)
    decoder = Decoder(compressed)
    exact = decoder.exact(bits)
    read_and_written = compressed.nbytes + w.nbytes
    # The product reads what was decoded.
    moved = read_and_written if x is None else read_and_written + w.nbytes
    return Row(
        suite=suite,
        op=suite,
        spec=name,
        codec=NAME,
        width=None,
        shape=compressed.shape,
        batch=None if x is None else x.shape[0],
        implementation=NAME if x is None else f"{NAME} and cublas",
        timing=decoder.time(moved, _multiplier(x)),
        bytes=compressed.nbytes,
        bf16_bytes=2 * math.prod(compressed.shape),
        moved_bytes=moved,
        baselines=baselines,
        exact=exact,
        rotated_bytes=_COPIES * compressed.nbytes,
        computed_by=None if x is None else "decode then dot",
    )


def _multiplier(x: jax.Array | None) -> Callable[[Any], None]:
    """What is done with a decoded matrix: nothing, or the product with x by cuBLAS."""
    if x is None:
        return lambda output: None
    import torch

    a = torch.from_dlpack(jax.block_until_ready(x))
    return lambda output: torch.matmul(a, output.T)
