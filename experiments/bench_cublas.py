"""Baselines of a bf16 product: cuBLAS through PyTorch and a CUDA graph, and XLA's own dot."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench_settings import repeats
from experiments.timing import slope

CUBLAS = "cublas"
XLA_DOT = "xla"

# Replays of a graph that are started without waiting in between, for the slope.
_REPLAYS = (1, 5)


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """float32[N, OUT]: XLA's own product of bf16 matrices."""
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def has_cublas() -> bool:
    """Whether cuBLAS can be called here: on a GPU, through PyTorch."""
    return jax.default_backend() == "gpu" and importlib.util.find_spec("torch") is not None


def cublas_seconds(x: jax.Array, weights: Sequence[jax.Array], count: int) -> float | None:
    """Seconds of one product by cuBLAS; None without a GPU or PyTorch.

    Args:
      x: bf16[N, K].
      weights: bf16[OUT, K] each, multiplied in turn.
      count: products in the graph.
    """
    if not has_cublas():
        return None
    import torch

    jax.block_until_ready((x, weights))
    a, matrices = torch.from_dlpack(x), [torch.from_dlpack(w) for w in weights]
    outputs = [torch.empty(x.shape[0], w.shape[0], dtype=a.dtype, device="cuda") for w in weights]

    def multiply() -> None:
        for index in range(count):
            place = index % len(matrices)
            torch.matmul(a, matrices[place].T, out=outputs[place])

    # What cuBLAS allocates at its first call can't be recorded.
    multiply()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        multiply()

    def replay(times: int) -> None:
        for _ in range(times):
            graph.replay()
        torch.cuda.synchronize()

    calls: dict[int, Callable[[], Any]] = {
        times: functools.partial(replay, times) for times in _REPLAYS
    }
    return slope(calls, repeats()).over(count).seconds
