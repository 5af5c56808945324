"""Codecs: how a weight's tiles are stored. `encode` and `decode` are the public way in."""

from collections.abc import Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import bf16, rans, window
from codecjax.codecs.cast import CastReport, to_bf16, warn_of_cast
from codecjax.codecs.window_pool import own_arrays
from codecjax.errors import UserError
from codecjax.tiles import DEFAULT_TILE, TiledMatrix, check_tile

CODECS: dict[str, ModuleType] = {"bf16": bf16, "rans": rans, "window": window}


def codec_module(name: str) -> ModuleType:
    """The module of codec `name`; UserError where there is none."""
    if name not in CODECS:
        raise UserError(f"unknown codec {name!r}: choose one of {', '.join(sorted(CODECS))}")
    return CODECS[name]


def check_options(codec: str, options: dict[str, int]) -> dict[str, int]:
    """The codec's options with defaults filled in; UserError for unknown names or values."""
    module = codec_module(codec)
    for name, value in options.items():
        if name not in module.OPTIONS:
            known = ", ".join(module.OPTIONS) or "none"
            raise UserError(f"codec {codec!r} has no option {name!r}: its options are {known}")
        if value not in module.CHOICES[name]:
            choices = ", ".join(str(choice) for choice in module.CHOICES[name])
            raise UserError(f"codec {codec!r} has no {name} {value!r}: choose one of {choices}")
    return {**module.OPTIONS, **options}


def encode_with_report(
    w: jax.Array | np.ndarray,
    codec: str = "window",
    tile: tuple[int, int] = DEFAULT_TILE,
    **options: int,
) -> tuple[TiledMatrix, CastReport | None]:
    """`encode` that returns the report of a cast to bf16 instead of warning of it."""
    module = codec_module(codec)
    options = check_options(codec, options)
    check_tile(tile)
    w = jnp.asarray(w)
    if w.ndim != 2 or 0 in w.shape:
        raise UserError(f"a weight of shape {w.shape} cannot be encoded: give it as [OUT, K]")
    w, report = to_bf16(w)
    return module.encode(w, tile, **options), report


def encode(
    w: jax.Array | np.ndarray,
    codec: str = "window",
    tile: tuple[int, int] = DEFAULT_TILE,
    **options: int,
) -> TiledMatrix:
    """Encodes a weight as tiles, on the device that holds it.

    Args:
      w: [OUT, K], bfloat16; float32 and float16 are cast, with a CastWarning that says what
        the cast changed.
      codec: a name in CODECS.
      tile: (rows, columns) of a tile, multiples of 64 and 128.
      **options: the codec's options, for example `width` (8, 11 or 16) of `window`.

    Returns:
      A TiledMatrix from which `decode` gives back the bf16 weight bit for bit.

    Raises:
      UserError: unknown codec, option or dtype, or `w` is no matrix.
    """
    t, report = encode_with_report(w, codec, tile, **options)
    if report is not None:
        warn_of_cast(report)
    return t


def cacheable_tiles(t: TiledMatrix) -> np.ndarray:
    """bool[T]: tiles that cost a decode wherever they are not resident."""
    return np.asarray(codec_module(t.codec).needs_decode(t))


def pooled(codec: str, matrices: Sequence[TiledMatrix]) -> tuple[TiledMatrix, ...]:
    """The same matrices, in arrays that they share where the codec can do that.

    Args:
      codec: of all matrices, with equal tiles and options.
      matrices: each in arrays of its own.
    """
    return tuple(codec_module(codec).pooled(matrices))


__all__ = [
    "CODECS",
    "cacheable_tiles",
    "check_options",
    "codec_module",
    "encode",
    "encode_with_report",
    "own_arrays",
    "pooled",
]
