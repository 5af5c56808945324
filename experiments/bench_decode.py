"""Suite `decode`: a matrix decoded to dense bf16, and into pages."""

import concurrent.futures
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kernels_pallas
from codecjax.codecs import cacheable_tiles
from codecjax.tiles import DECODE, TiledMatrix, fill_entry
from experiments import bench_dfloat11, bench_nvcomp
from experiments.bench_matrices import (
    EMBEDDED,
    OTHER_WIDTHS,
    Stored,
    all_pages,
    alone,
    applications,
    bit_equal,
    make_weights,
    residency,
)
from experiments.bench_rows import DEVICE_COPY, Row, of_matrix
from experiments.bench_settings import Settings, repeats
from experiments.timing import Repeated
from kernels_pallas.arg_specs import BY_NAME

SUITE = "decode"
DENSE_DECODE = "dense decode"
DEFAULT = ("llama_8b.up", "llama_8b.output")
KNOWN = (*BY_NAME, EMBEDDED)


def measure(settings: Settings) -> Iterator[list[Row]]:
    """Rows shape by shape; the first shape also has other widths, pages and the peers."""
    names = settings.chosen(DEFAULT, KNOWN)
    started: list[tuple[str, list[tuple[Stored, Repeated]], list[_Filling]]] = []
    with concurrent.futures.ThreadPoolExecutor() as compiler:
        for name in names:
            weights, full = make_weights(name), name == names[0]
            codecs = [weights.lossless(weights.window()), weights.lossless(weights.rans())]
            codecs += weights.lossy
            widths = [weights.window(width) for width in OTHER_WIDTHS if full]
            dense = [
                (each, _decoding(each.tiled, settings.implementation, compiler))
                for each in (*codecs, *map(weights.lossless, widths))
            ]
            filling = [
                _Filling(each, settings.implementation, compiler)
                for each in codecs
                if full and not each.first.is_dense
            ]
            started.append((name, dense, filling))
            settings.say(f"{name}: traced")
    settings.say("all is compiled")
    while started:
        yield _rows(*started.pop(0), settings)
    if settings.peers:
        w = make_weights(names[0]).plain[0]
        copy = {DEVICE_COPY: 2 * w.nbytes / settings.bandwidth}
        for peer in (bench_dfloat11, bench_nvcomp):
            yield [peer.decode_row(names[0], w, copy)]


def _decoding(
    tiled: Sequence[TiledMatrix], implementation: str, compiler: concurrent.futures.Executor
) -> Repeated:
    def decode(t: TiledMatrix) -> jax.Array:
        return kernels_pallas.decode(t, implementation=implementation)[0]

    return Repeated(alone(decode), tiled, _count(tiled), compiler)


def _count(tiled: Sequence[TiledMatrix]) -> int:
    out, k = tiled[0].shape
    return applications(len(tiled), tiled[0].nbytes + 2 * out * k)


class _Filling:
    """Decodes every compressed tile of several matrices into a page of its own.

    The pages are scattered over the pool, which every application hands on to the next.

    Attributes:
      t: one of the matrices, all alike.
      call: hands on the residency.
    """

    def __init__(
        self, stored: Stored, implementation: str, compiler: concurrent.futures.Executor
    ) -> None:
        tiled = stored.tiled
        self.t, self._decoded = stored.first, stored.decoded
        total = len(tiled) * self.t.tiles
        self._pages = np.random.default_rng(0).permutation(total)
        self._compressed = np.concatenate([cacheable_tiles(t) for t in tiled])
        fills = [fill_entry(int(page)) for page in self._pages]
        table = np.where(self._compressed, fills, DECODE)
        pool = jnp.zeros((total, *self.t.tile), jnp.bfloat16)

        def decode(argument: Any, held: Any) -> Any:
            t, first = argument
            return (), kernels_pallas.fill(t, held, first, implementation=implementation)

        firsts = [jnp.int32(number * self.t.tiles) for number in range(len(tiled))]
        carried = residency(pool, table, self.t.tile)
        inputs = tuple(zip(tiled, firsts, strict=True))
        self.call = Repeated(decode, inputs, _count(tiled), compiler, carried)

    def exact(self) -> bool:
        """Whether a call leaves the tiles of the decoded matrices in the pages."""
        self.call()
        for number, w in enumerate(self._decoded):
            here = slice(number * self.t.tiles, (number + 1) * self.t.tiles)
            chosen = self._compressed[here]
            found = self.call.carried.pages[self._pages[here][chosen]]
            # What lies beyond the matrix's edges is the kernel's own affair.
            inside = all_pages(jnp.ones_like(w), self.t)[chosen]
            wanted = all_pages(w, self.t)[chosen]
            if not bit_equal([jnp.where(inside == 1, found, 0)], [wanted]):
                return False
        return True


def _rows(
    name: str,
    dense: Sequence[tuple[Stored, Repeated]],
    filling: Sequence[_Filling],
    settings: Settings,
) -> list[Row]:
    copies, size = len(dense[0][0].decoded), dense[0][0].decoded[0].nbytes

    def measured(op: str, t: TiledMatrix, call: Repeated, exact: bool, **fields: Any) -> Row:
        return Row(
            suite=SUITE,
            op=op,
            spec=name,
            batch=None,
            implementation=settings.implementation,
            timing=call.time(repeats()),
            host_share=call.host_share,
            exact=exact,
            rotated_bytes=copies * t.nbytes,
            **of_matrix(t),
            **fields,
        )

    rows = []
    for each, call in dense:
        t, outputs = each.first, call()
        wanted = [each.decoded[place % copies] for place in range(len(outputs))]
        exact = bit_equal(outputs, wanted)
        copy = {DEVICE_COPY: 2 * size / settings.bandwidth}
        rows.append(measured("decode", t, call, exact, baselines=copy, moved_bytes=t.nbytes + size))
    for pages in filling:
        dense_decode = next(row for row in rows if row.codec == pages.t.codec)
        to_dense = {DENSE_DECODE: dense_decode.timing.seconds}
        moved, exact = pages.t.nbytes + size, pages.exact()
        op = "decode_into_pages"
        rows.append(measured(op, pages.t, pages.call, exact, baselines=to_dense, moved_bytes=moved))
    return rows
