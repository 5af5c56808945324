"""Suite `matmul`: the fused product beside cuBLAS and XLA on the same matrix in bf16."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kernels_pallas
from codecjax.codecs import encode, is_lossy
from codecjax.tiles import Residency, TiledMatrix
from experiments import bench_dfloat11
from experiments.bench_cublas import CUBLAS, XLA_DOT, cublas_seconds, dot, has_cublas
from experiments.bench_matrices import (
    EMBEDDED,
    OTHER_WIDTHS,
    Reference,
    Stored,
    Weights,
    all_pages,
    applications,
    bit_equal,
    make_weights,
    residency,
)
from experiments.bench_rows import Row, of_matrix
from experiments.bench_settings import Settings, repeats
from experiments.timing import Repeated
from kernels_pallas import few_rows_mosaic_gpu
from kernels_pallas.arg_specs import BY_NAME, LLAMA_8B, activations
from kernels_pallas.entropy_mosaic_gpu import ENTROPY_CODED, FUSED

SUITE = "matmul"
SMALL = ("tinyllama.key", "tinyllama.query", "tinyllama.up", "tinyllama.down", EMBEDDED)
DEFAULT = (*(spec.name for spec in LLAMA_8B), *SMALL)
KNOWN = (*BY_NAME, EMBEDDED)

# Where the bandwidth of memory decides, and where that of the matrix units does.
_BATCHES = (1, 16, 32, 64)
_PREFILL = (128, 512, 2048, 4096)
_PREFILL_SPEC = "llama_8b.up"

# Of a product summed in float32, however it is split.
_MOST_ERROR = 1e-5
_FUSED, _DECODE_THEN_DOT = "fused", "decode then dot"


@dataclasses.dataclass
class _Batch:
    """One shape and batch, being compiled.

    Attributes:
      x: bf16[N, K].
      count: applications in each call.
      dot: by XLA.
      dense: by our kernel, on the bf16 matrices.
      stored: by our kernel, with the matrices that each call takes.
      paged: the same with pages, or None.
    """

    x: jax.Array
    count: int
    dot: Repeated
    dense: Repeated
    stored: list[tuple[Stored, Repeated]]
    paged: "list[_Paged]"


@dataclasses.dataclass
class _Paged:
    """Products with a page pool in place, whose page table says what is resident.

    Attributes:
      stored: the matrices.
      call: hands on x and the residency.
      tiles: of all matrices together.
    """

    stored: Stored
    call: Repeated
    tiles: int


def batches_of(name: str, asked: Sequence[int]) -> tuple[int, ...]:
    """Rows of x that a shape is measured with, unless some are asked for."""
    if asked:
        return tuple(asked)
    if name == _PREFILL_SPEC:
        return (*_BATCHES, *_PREFILL)
    return _BATCHES if name in {spec.name for spec in LLAMA_8B} else (1,)


def measure(settings: Settings) -> Iterator[list[Row]]:
    """Rows shape by shape; the first shape also has other widths and pages, at its first batch."""
    names = settings.chosen(DEFAULT, KNOWN)
    if jax.default_backend() == "gpu" and not has_cublas():
        settings.say("no cuBLAS baseline, as PyTorch is not installed: pip install torch")
    started: list[tuple[Weights, Reference, list[_Batch]]] = []
    with concurrent.futures.ThreadPoolExecutor() as compiler:
        for name in names:
            weights, batches = make_weights(name), batches_of(name, settings.batches)
            tiled, reference = weights.window(), Reference(weights.plain[0], max(batches))
            traced = []
            for batch in batches:
                full = name == names[0] and batch == batches[0]
                x = reference.x(batch)
                traced.append(_start(weights, tiled, x, full, settings.implementation, compiler))
            started.append((weights, reference, traced))
            settings.say(f"{name}: traced")
    settings.say("all is compiled")
    while started:
        weights, reference, traced = started.pop(0)
        rows: list[Row] = []
        while traced:
            rows += _rows(weights, reference, traced.pop(0), settings)
        yield rows
    if settings.peers:
        w = make_weights(names[0]).plain[0]
        x = activations(1, w.shape[1], seed=1)
        copies = (w, jnp.copy(w))
        cublas = cublas_seconds(x, copies, applications(len(copies), w.nbytes))
        baselines = {} if cublas is None else {CUBLAS: cublas}
        yield [bench_dfloat11.matmul_row(names[0], w, x, baselines)]


def _start(
    weights: Weights,
    tiled: Sequence[TiledMatrix],
    x: jax.Array,
    full: bool,
    implementation: str,
    compiler: concurrent.futures.Executor,
) -> _Batch:
    """Starts to compile all that is measured at one batch; `full` adds widths and pages."""
    (batch, k), out = x.shape, weights.shape[0]
    # One count for all: the bf16 variants only take longer than they would need to.
    count = applications(len(tiled), tiled[0].nbytes, 2.0 * batch * out * k)

    def repeated(function: Any, inputs: Sequence[Any]) -> Repeated:
        # x is handed on and not a constant, which the compiler might do work on.
        return Repeated(
            lambda argument, x: (function(x, argument), x), inputs, count, compiler, jnp.copy(x)
        )

    def product(x: jax.Array, t: TiledMatrix) -> jax.Array:
        return kernels_pallas.matmul(x, t, implementation=implementation)[0]

    window, coded, widths = weights.lossless(tuple(tiled)), [], []
    if full:
        coded = [weights.lossless(weights.rans()), *weights.lossy]
        widths = [weights.lossless(weights.window(width)) for width in OTHER_WIDTHS]
    return _Batch(
        x=x,
        count=count,
        dot=repeated(dot, weights.plain),
        dense=repeated(product, weights.dense),
        stored=[(each, repeated(product, each.tiled)) for each in (window, *widths, *coded)],
        paged=[
            _start_paged(each, x, count, implementation, compiler)
            for each in (window, *coded)
            if full and not each.first.is_dense
        ],
    )


def _start_paged(
    stored: Stored,
    x: jax.Array,
    count: int,
    implementation: str,
    compiler: concurrent.futures.Executor,
) -> _Paged:
    tiled, tiles, tile = stored.tiled, stored.first.tiles, stored.first.tile
    pages = jnp.concatenate([all_pages(w, t) for w, t in zip(stored.decoded, tiled, strict=True)])
    first_tiles = [jnp.int32(number * tiles) for number in range(len(tiled))]

    def product(argument: Any, carried: Any) -> Any:
        (t, first), (x, held) = argument, carried
        y, held = kernels_pallas.matmul(x, t, held, first, implementation=implementation)
        return y, (x, held)

    total = len(tiled) * tiles
    carried = (jnp.copy(x), residency(pages, np.full(total, -1), tile))
    inputs = tuple(zip(tiled, first_tiles, strict=True))
    return _Paged(stored, Repeated(product, inputs, count, compiler, carried), total)


def _rows(weights: Weights, reference: Reference, batch: _Batch, settings: Settings) -> list[Row]:
    """Checks and times everything of one batch."""
    x, n = batch.x, batch.x.shape[0]
    calls = [batch.dot, batch.dense, *(call for _, call in batch.stored)]
    # What is compared is timed by one method.
    by_profiler = any(call.host_bound for call in calls)
    baselines = {XLA_DOT: batch.dot.time(repeats(), by_profiler).seconds}
    cublas = cublas_seconds(x, weights.plain, batch.count)
    if cublas is not None:
        baselines[CUBLAS] = cublas
    around = x.nbytes + 4 * n * weights.shape[0]

    def row(op: str, t: TiledMatrix, call: Repeated, exact: bool, **fields: Any) -> Row:
        return Row(
            suite=SUITE,
            op=op,
            spec=weights.name,
            batch=n,
            implementation=settings.implementation,
            timing=call.time(repeats(), by_profiler),
            host_share=call.host_share,
            baselines=baselines,
            exact=exact,
            computed_by=_computed_by(t, n, call),
            **({"moved_bytes": t.nbytes + around} | of_matrix(t) | fields),
        )

    error = reference.error(batch.dense()[0])
    rows = [
        row(
            *("matmul", weights.dense[0], batch.dense, error < _MOST_ERROR),
            relative_error=error,
            rotated_bytes=sum(each.nbytes for each in weights.plain),
        )
    ]
    # Timing overwrites a call's outputs, so the bf16 kernel's are made again to compare with.
    dense = batch.dense()

    def checked(stored: Stored, call: Repeated) -> tuple[bool, float]:
        products, wanted, right = call(), dense, reference
        if is_lossy(stored.first.codec):
            wanted = _products(stored.decoded, x, len(products), settings.implementation)
            right = reference.of(stored.decoded[0])
        same = bit_equal(products, wanted)
        found = error if same and right is reference else right.error(products[0])
        return same and found < _MOST_ERROR, found

    for stored, call in batch.stored:
        t, (exact, found) = stored.first, checked(stored, call)
        rotated = len(weights.plain) * t.nbytes
        rows.append(row("matmul", t, call, exact, relative_error=found, rotated_bytes=rotated))
    for paged in batch.paged:
        rows += _paged_rows(paged, checked, row, around)
    return rows


def _products(
    dense: Sequence[jax.Array], x: jax.Array, count: int, implementation: str
) -> list[jax.Array]:
    """So many products by our kernel with bf16 matrices, taken in turn."""
    each = [
        kernels_pallas.matmul(x, encode(w, codec="bf16"), implementation=implementation)[0]
        for w in dense
    ]
    return [each[place % len(each)] for place in range(count)]


def _paged_rows(
    paged: _Paged,
    checked: Callable[[Stored, Repeated], tuple[bool, float]],
    row: Callable[..., Row],
    around: int,
) -> list[Row]:
    """None, half and all of the tiles resident; nothing but the page table differs."""
    pages, t = np.arange(paged.tiles), paged.stored.first
    chosen = np.random.default_rng(0).permutation(paged.tiles) < paged.tiles // 2
    tables = {
        "none": np.full(paged.tiles, -1),
        "all": pages,
        "half": np.where(chosen, pages, -1),
    }
    read = {"none": t.nbytes, "all": 2 * t.shape[0] * t.shape[1]}
    read["half"] = (read["none"] + read["all"]) // 2
    rows: dict[str, Row] = {}
    for name, table in tables.items():
        x, held = paged.call.carried
        on_device = jnp.asarray(table, jnp.int32)
        paged.call.carried = (x, Residency(held.pages, on_device, held.decoded))
        exact, error = checked(paged.stored, paged.call)
        rows[name] = row(
            *(f"matmul_paged_{name}", t, paged.call, exact),
            relative_error=error,
            rotated_bytes=paged.tiles // t.tiles * read[name],
            moved_bytes=read[name] + around,
        )
    pure = [rows[name].timing.seconds for name in ("none", "all")]
    over = rows["half"].timing.seconds / (sum(pure) / len(pure))
    return [rows["none"], dataclasses.replace(rows["half"], over_interpolation=over), rows["all"]]


def _computed_by(t: TiledMatrix, rows: int, call: Repeated) -> str:
    few = t.codec in FUSED and rows <= few_rows_mosaic_gpu.MAX_ROWS
    decoded_first = t.codec in ENTROPY_CODED and not t.is_dense and not few
    return _DECODE_THEN_DOT if decoded_first or _has_dot(call.jaxpr.jaxpr) else _FUSED


def _has_dot(jaxpr: Any) -> bool:
    """Whether XLA multiplies here, outside of kernels."""
    return any(
        equation.primitive.name == "dot_general"
        or (equation.primitive.name in ("jit", "pjit") and _has_dot(equation.params["jaxpr"].jaxpr))
        for equation in jaxpr.eqns
    )
