"""Suite `encode`: how fast a weight is compressed, on a CPU as on a GPU."""

import functools
from collections.abc import Iterator
from typing import Any

import jax

import codecjax
from codecjax.codecs import encode, is_lossy
from codecjax.tiles import TiledMatrix
from experiments.bench_matrices import (
    EMBEDDED,
    LOSSY,
    OTHER_WIDTHS,
    WIDTH,
    bit_equal,
    make_weights,
)
from experiments.bench_rows import DEVICE_COPY, Row, of_matrix
from experiments.bench_settings import Settings, repeats
from experiments.timing import WALL_CLOCK, seconds_of, summary
from kernels_pallas.arg_specs import BY_NAME

SUITE = "encode"
DEFAULT = ("llama_8b.up",)
KNOWN = (*BY_NAME, EMBEDDED)
CODECS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("window", {"width": width}) for width in (WIDTH, *OTHER_WIDTHS)),
    ("rans", {}),
    *LOSSY,
)


def _encode(codec: str, options: dict[str, Any], w: jax.Array) -> TiledMatrix:
    return encode(w, codec, **options)


def measure(settings: Settings) -> Iterator[list[Row]]:
    """Rows shape by shape and codec by codec.

    The host decides between the passes of an encoder, so the clock on the wall counts.
    """
    for name in settings.chosen(DEFAULT, KNOWN):
        weights = make_weights(name).plain
        for codec, options in CODECS:
            encoder = functools.partial(_encode, codec, options)
            t = encoder(weights[0])
            exact = None
            if not is_lossy(codec):
                exact = bit_equal([codecjax.decode(t)], [weights[0]])
            calls = [functools.partial(encoder, w) for _ in range(repeats()) for w in weights]
            timing = summary([seconds_of(call) for call in calls], WALL_CLOCK)
            size = weights[0].nbytes
            row = Row(
                suite=SUITE,
                op=SUITE,
                spec=name,
                batch=None,
                # It is plain JAX everywhere.
                implementation="xla",
                timing=timing,
                moved_bytes=size + t.nbytes,
                baselines={DEVICE_COPY: 2 * size / settings.bandwidth},
                exact=exact,
                rotated_bytes=len(weights) * size,
                **of_matrix(t),
            )
            yield [row]
