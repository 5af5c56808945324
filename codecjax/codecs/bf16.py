"""The `bf16` codec: no compression, the baseline of every table.

Arrays: `dense` bf16[OUT, K], row-major. Nothing is ever decoded, so nothing is ever cached.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from codecjax.tiles import TiledMatrix

VERSION = 1
OPTIONS: dict[str, int] = {}


def encode(w: jax.Array, tile: tuple[int, int]) -> TiledMatrix:
    """Wraps bf16[OUT, K] as it is."""
    return TiledMatrix({"dense": w}, "bf16", VERSION, (w.shape[0], w.shape[1]), tile, ())


def needs_decode(t: TiledMatrix) -> jax.Array:
    """bool[T], all False."""
    return jnp.zeros(t.tiles, bool)


def pooled(matrices: Sequence[TiledMatrix]) -> tuple[TiledMatrix, ...]:
    """The matrices as they are."""
    return tuple(matrices)
