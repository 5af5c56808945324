"""Codecs: how a weight's tiles are stored. `encode` and `decode` are the public way in."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import bf16, ecsq, int8_rans, rans, window
from codecjax.codecs.cast import CastReport, to_bf16, warn_of_cast
from codecjax.codecs.ecsq_importance import check_importance
from codecjax.codecs.intervals import Interval, Option
from codecjax.codecs.window_pool import own_arrays
from codecjax.errors import UserError
from codecjax.tiles import DEFAULT_TILE, TiledMatrix, check_tile

CODECS: dict[str, ModuleType] = {
    "bf16": bf16,
    "ecsq": ecsq,
    "int8_rans": int8_rans,
    "rans": rans,
    "window": window,
}


def codec_module(name: str) -> ModuleType:
    """The module of codec `name`; UserError where there is none."""
    if name not in CODECS:
        raise UserError(f"unknown codec {name!r}: choose one of {', '.join(sorted(CODECS))}")
    return CODECS[name]


def check_options(codec: str, options: Mapping[str, Option]) -> dict[str, Option]:
    """The codec's options with defaults filled in; UserError for unknown names or values."""
    module = codec_module(codec)
    for name, value in options.items():
        if name not in module.OPTIONS:
            known = ", ".join(module.OPTIONS) or "none"
            raise UserError(f"codec {codec!r} has no option {name!r}: its options are {known}")
        if value not in module.CHOICES[name]:
            allowed = described(module.CHOICES[name])
            raise UserError(f"codec {codec!r} has no {name} {value!r}: choose {allowed}")
    return {**module.OPTIONS, **options}


def described(choices: Interval | Sequence[Option]) -> str:
    """What an option may be, in words."""
    if isinstance(choices, Interval):
        return f"a number from {choices}"
    return "one of " + ", ".join(str(choice) for choice in choices)


def is_lossy(codec: str) -> bool:
    """Whether decoding gives other weights than were encoded."""
    return bool(getattr(codec_module(codec), "LOSSY", False))


def plans(codec: str) -> bool:
    """Whether the codec looks at all matrices of a model before it encodes any."""
    return hasattr(codec_module(codec), "plan")


def check_weighs(codec: str) -> None:
    """UserError unless the codec knows how much errors of each input column count."""
    if not getattr(codec_module(codec), "WEIGHS", False):
        weighing = ", ".join(name for name in CODECS if getattr(CODECS[name], "WEIGHS", False))
        raise UserError(
            f"codec {codec!r} knows no importance of columns: leave it out, or choose {weighing}"
        )


def plan(
    codec: str,
    weights: Callable[[], Iterable[jax.Array | np.ndarray]],
    tile: tuple[int, int],
    pools: int,
    importance: Sequence[np.ndarray] | None = None,
    **options: Option,
) -> Any:
    """What a codec that plans says of matrices that will be encoded as one model.

    Args:
      codec: one that plans.
      weights: gives them, [OUT, K] each, each time it is called.
      tile: (rows, columns) of a tile.
      pools: how many pools of arrays they will make.
      importance: of each, as of `encode`; only of a codec that weighs, and checked before.
      **options: the codec's.

    Raises:
      UserError: the codec cannot store these weights as the options ask.
    """
    filled = check_options(codec, options)

    def cast() -> Iterator[jax.Array]:
        for w in weights():
            yield to_bf16(jnp.asarray(w))[0]

    weighed = {} if importance is None else {"importance": importance}
    return codec_module(codec).plan(cast, tile, pools, **weighed, **filled)


def encode_with_report(
    w: jax.Array | np.ndarray,
    codec: str = "window",
    tile: tuple[int, int] = DEFAULT_TILE,
    plan: Any = None,
    importance: jax.Array | np.ndarray | None = None,
    **options: Option,
) -> tuple[TiledMatrix, CastReport | None]:
    """`encode` that returns the report of a cast to bf16 instead of warning of it.

    Args: as of `encode`, and
      plan: what `plan` said of the weight's model; None where it is alone or the codec plans
        nothing.
    """
    module = codec_module(codec)
    options = check_options(codec, options)
    check_tile(tile)
    w = jnp.asarray(w)
    if w.ndim != 2 or 0 in w.shape:
        raise UserError(f"a weight of shape {w.shape} cannot be encoded: give it as [OUT, K]")
    w, report = to_bf16(w)
    known = {} if plan is None else {"plan": plan}
    if importance is not None:
        check_weighs(codec)
        known["importance"] = check_importance(importance, w.shape[1])
    return module.encode(w, tile, **options, **known), report


def encode(
    w: jax.Array | np.ndarray,
    codec: str = "window",
    tile: tuple[int, int] = DEFAULT_TILE,
    importance: jax.Array | np.ndarray | None = None,
    **options: Option,
) -> TiledMatrix:
    """Encodes a weight as tiles, on the device that holds it.

    Args:
      w: [OUT, K], bfloat16; float32 and float16 are cast, with a CastWarning that says what
        the cast changed.
      codec: a name in CODECS.
      tile: (rows, columns) of a tile, multiples of 64 and 128.
      importance: of `ecsq` only, up to a factor: how much a squared error counts in each input
        column, float32[K] above 0; or mean products of the inputs x, E[x x^T], float32[K, K], with
        which later columns also make up for the errors of those before. None where all columns
        count alike.
      **options: the codec's options, for example `width` (8, 11 or 16) and `most_bits` of
        `window`, or `bits_per_weight` (2 to 8) of `ecsq`.

    Returns:
      A TiledMatrix from which `decode` gives back the bf16 weight bit for bit; of `ecsq` and
      `int8_rans`, which are lossy, a weight near it, and the same one everywhere.

    Raises:
      UserError: unknown codec, option or dtype, `w` is no matrix, the codec cannot store it as
        the options ask, or `importance` does not fit `w` or the codec.
    """
    t, report = encode_with_report(w, codec, tile, None, importance, **options)
    if report is not None:
        warn_of_cast(report)
    return t


def cacheable_tiles(t: TiledMatrix) -> np.ndarray:
    """bool[T]: tiles that cost a decode wherever they are not resident."""
    return np.asarray(codec_module(t.codec).needs_decode(t))


def pooled(codec: str, matrices: Sequence[TiledMatrix]) -> tuple[TiledMatrix, ...]:
    """The same matrices, in arrays that they share where the codec can do that.

    Args:
      codec: of all matrices, with equal tiles.
      matrices: each in arrays of its own.
    """
    return tuple(codec_module(codec).pooled(matrices))


__all__ = [
    "CODECS",
    "cacheable_tiles",
    "check_importance",
    "check_options",
    "check_weighs",
    "codec_module",
    "described",
    "encode",
    "encode_with_report",
    "is_lossy",
    "own_arrays",
    "plan",
    "plans",
    "pooled",
]
