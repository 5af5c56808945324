"""Times the kernels against XLA's bf16 dot, cuBLAS and the bytes they must move, in one run.

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m experiments.bench --output=runs/bench.json

Needs a GPU on which `mosaic_gpu` runs. All times are device seconds of one application by
slope timing, over different matrices in turn that together exceed the GPU's L2 several times;
cuBLAS is called through PyTorch, where that is installed, and replayed from a CUDA graph.
"""

import concurrent.futures
import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

import kernels_pallas
from codecjax.codecs import encode
from codecjax.tiles import Residency, TiledMatrix, units_per_tile
from experiments import cli, environment, formats, timing
from experiments.records import write_json
from kernels_pallas.arg_specs import LLAMA_8B, TINYLLAMA, MatrixSpec, activations, gaussian_weight
from kernels_pallas.implementations import MOSAIC_GPU

_OUTPUT = "output"
_BATCHES = "batches"

# Compressed bytes of all matrices of a measurement together: twice an H100's or H200's L2.
ROTATED_BYTES = 100 * 2**20
REPEATS = 7

# The matrices of which a hundred megabytes are few.
SPECS = (LLAMA_8B[0], *(spec for spec in TINYLLAMA if spec.out * spec.k >= 2**23))

Calls = dict[int, Callable[[], Any]]


def cublas_seconds(x: jax.Array, weights: Sequence[jax.Array]) -> float | None:
    """Seconds of x @ w.T by cuBLAS, from a CUDA graph; None where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    a, matrices = torch.from_dlpack(x), [torch.from_dlpack(w) for w in weights]
    outputs = [torch.empty(x.shape[0], w.shape[0], dtype=a.dtype, device="cuda") for w in weights]

    def multiply() -> None:
        for matrix, output in zip(matrices, outputs, strict=True):
            torch.matmul(a, matrix.T, out=output)

    multiply()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        multiply()
    seconds = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        seconds.append(1e-3 * start.elapsed_time(end) / len(matrices))
    return float(np.median(seconds))


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """XLA's own product of bf16 matrices."""
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def paged_calls(
    x: jax.Array,
    matrices: Sequence[TiledMatrix],
    resident: bool,
    counts: tuple[int, int],
    compiler: concurrent.futures.Executor,
) -> Calls:
    """A product with a page pool in place, all tiles resident or none, as `slope` takes it."""
    tiles = matrices[0].tiles
    total = len(matrices) * tiles
    pages = jnp.concatenate([_pages(t) for t in matrices])
    table = np.arange(total) if resident else np.full(total, -1)
    decoded = jnp.zeros((total, units_per_tile(matrices[0].tile)), jnp.int32)

    def applications(count: int, held: Residency) -> Any:
        outputs = []
        for index in range(count):
            place = index % len(matrices)
            y, after = kernels_pallas.matmul(
                x, matrices[place], held, place * tiles, implementation=MOSAIC_GPU
            )
            assert after is not None
            held = after
            outputs.append(y)
        return outputs, held

    state = [Residency(pages, jnp.asarray(table, jnp.int32), decoded)]
    jitted = jax.jit(applications, static_argnums=0, donate_argnums=1)
    executables = {
        count: compiler.submit(jitted.lower(count, state[0]).compile) for count in counts
    }

    def call(count: int) -> Any:
        outputs, state[0] = executables[count].result()(state[0])
        return outputs

    return {count: functools.partial(call, count) for count in counts}


def _pages(t: TiledMatrix) -> jax.Array:
    """bf16[T, rows, columns]: all tiles of a matrix, decoded."""
    (down, across), (rows, columns) = t.grid, t.tile
    w, _ = kernels_pallas.decode(t, implementation=MOSAIC_GPU)
    return w.reshape(down, rows, across, columns).swapaxes(1, 2).reshape(-1, rows, columns)


def measure(
    spec: MatrixSpec, batches: Sequence[int], paged: bool, bandwidth: float
) -> list[dict[str, Any]]:
    """One row per op and batch: seconds by variant, and the floors.

    Args:
      spec: the matrix shape.
      batches: rows N of x.
      paged: whether the first batch is measured with pages too.
      bandwidth: bytes a second of a large copy, read plus written.
    """
    size = 2 * spec.out * spec.k
    copies = max(3, -(-ROTATED_BYTES // (size * 3 // 4)))
    weights = [gaussian_weight(spec.out, spec.k, seed) for seed in range(copies)]
    window = [encode(w, codec="window") for w in weights]
    dense = [encode(w, codec="bf16") for w in weights]
    xs = {batch: activations(batch, spec.k, seed=batch) for batch in batches}

    def fused(x: jax.Array, t: TiledMatrix) -> jax.Array:
        return kernels_pallas.matmul(x, t, implementation=MOSAIC_GPU)[0]

    def decode(t: TiledMatrix) -> jax.Array:
        return kernels_pallas.decode(t, implementation=MOSAIC_GPU)[0]

    # All outputs of a call are alive at once: few applications of what makes large ones.
    counts, decode_counts = (copies, 4 * copies), (2, 2 + copies)
    with concurrent.futures.ThreadPoolExecutor() as compiler:
        calls: dict[tuple[int | None, str], Calls] = {
            (None, "mosaic_window"): timing.compiled_calls(decode, window, decode_counts, compiler)
        }
        for batch, x in xs.items():
            for name, function, inputs in (
                ("xla_bf16", dot, weights),
                ("mosaic_bf16", fused, dense),
                ("mosaic_window", fused, window),
            ):
                partial = functools.partial(function, x)
                calls[batch, name] = timing.compiled_calls(partial, inputs, counts, compiler)
        for name, resident in (("none", False), ("all", True)) if paged else ():
            calls[batches[0], f"mosaic_window_{name}_resident"] = paged_calls(
                xs[batches[0]], window, resident, counts, compiler
            )
    seconds = {key: timing.slope(each, REPEATS) for key, each in calls.items()}

    common = {"spec": spec.name, "out": spec.out, "k": spec.k}
    common |= {"bits_per_weight": window[0].bits_per_weight, "copies": copies}
    floors = {"bf16": size / bandwidth, "window": window[0].nbytes / bandwidth}
    rows: list[dict[str, Any]] = []
    for batch, x in xs.items():
        variants: dict[str, float | None] = {
            name: value for (which, name), value in seconds.items() if which == batch
        }
        variants["cublas_bf16"] = cublas_seconds(x, weights)
        rows.append(
            {**common, "op": "matmul", "batch": batch, "seconds": variants, "floor_seconds": floors}
        )
    decoded = seconds[None, "mosaic_window"]
    rows.append(
        {
            **common,
            "op": "decode",
            "batch": None,
            "seconds": {"mosaic_window": decoded},
            "floor_seconds": {"window": (window[0].nbytes + size) / bandwidth},
            "output_bytes_per_second": size / decoded,
        }
    )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The figures as people read them."""
    result = Table(title="Kernels", title_justify="left")
    headings = ("matrix", "op", "batch", "XLA bf16", "cuBLAS bf16", "mosaic bf16", "mosaic window")
    for heading in (*headings, "floor", "none resident", "all resident", "vs XLA", "vs cuBLAS"):
        result.add_column(heading, justify="left" if heading in ("matrix", "op") else "right")
    for row in rows:
        times = row["seconds"]
        own = times["mosaic_window"]
        ratios = [
            None if times.get(other) is None else times[other] / own
            for other in ("xla_bf16", "cublas_bf16")
        ]
        shown = (
            "xla_bf16",
            "cublas_bf16",
            "mosaic_bf16",
            "mosaic_window",
        )
        result.add_row(
            row["spec"],
            row["op"],
            formats.MISSING if row["batch"] is None else str(row["batch"]),
            *[formats.seconds(times.get(name)) for name in shown],
            formats.seconds(row["floor_seconds"]["window"]),
            formats.seconds(times.get("mosaic_window_none_resident")),
            formats.seconds(times.get("mosaic_window_all_resident")),
            *[formats.factor(ratio) for ratio in ratios],
        )
    return result


def main(argv: list[str]) -> int:
    del argv
    kernels_pallas.resolve(MOSAIC_GPU)
    console = Console(width=170)
    batches = [int(batch) for batch in flags.FLAGS[_BATCHES].value]
    bandwidth = timing.copy_bandwidth()
    console.print(f"copy bandwidth {bandwidth / 1e9:,.0f} GB/s, read plus written")
    output = Path(flags.FLAGS[_OUTPUT].value)
    rows: list[dict[str, Any]] = []
    for spec in SPECS:
        # More than one row and pages are measured where bandwidth, not launching, decides.
        large = spec in LLAMA_8B
        rows += measure(spec, batches if large else batches[:1], large, bandwidth)
        # Written each time, so that an interruption costs no more than one matrix.
        record = {
            "environment": environment.describe({"matmul": MOSAIC_GPU, "decode": MOSAIC_GPU}),
            "copy_bytes_per_second": bandwidth,
            "rows": rows,
        }
        write_json(output, record)
        console.print(f"{spec.name} is done")
    console.print(table(rows))
    console.print(f"record: {output}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string(_OUTPUT, "runs/bench.json", "Where the record goes.")
    flags.DEFINE_list(_BATCHES, ["1", "16", "64"], "Rows of x; small matrices take the first.")
    cli.run(main)
