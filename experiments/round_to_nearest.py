"""Quantisers that a lossy codec has to beat: scales, and indices rounded to the nearest.

Each gives bf16 weights and the bits that a weight takes: its index, and its share of the scales,
in bf16.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from codecjax.errors import UserError

GROUP = 128
_SCALE_BITS = 16


@dataclasses.dataclass(frozen=True)
class Rounded:
    """bf16[OUT, K] weights after quantisation, and the bits each takes."""

    weights: jax.Array
    bits_per_weight: float


def _groups(w: jax.Array, size: int) -> jax.Array:
    """float32[OUT, K / size, size]."""
    if w.shape[1] % size:
        raise UserError(
            f"rows of {w.shape[1]} weights have no groups of {size}: choose a model whose rows do"
        )
    return w.astype(jnp.float32).reshape(w.shape[0], -1, size)


def _scaled(values: jax.Array) -> jax.Array:
    """Scales as they are stored, in bf16; 1 where all is 0."""
    stored = values.astype(jnp.bfloat16).astype(jnp.float32)
    return jnp.where(stored > 0, stored, 1.0)


def symmetric(w: jax.Array, bits: int, size: int) -> Rounded:
    """Groups with a scale, their largest magnitude over 2**(bits - 1) - 1."""
    groups, largest = _groups(w, size), (1 << (bits - 1)) - 1
    scale = _scaled(jnp.max(jnp.abs(groups), axis=-1, keepdims=True) / largest)
    index = jnp.clip(jnp.round(groups / scale), -largest - 1, largest)
    rounded = (index * scale).astype(jnp.bfloat16).reshape(w.shape)
    return Rounded(rounded, bits + _SCALE_BITS / size)


def asymmetric(w: jax.Array, bits: int, size: int) -> Rounded:
    """Groups with a scale and a smallest value: 2**bits - 1 equal steps over their range."""
    groups, steps = _groups(w, size), (1 << bits) - 1
    low = jnp.min(groups, axis=-1, keepdims=True)
    low = low.astype(jnp.bfloat16).astype(jnp.float32)
    scale = _scaled((jnp.max(groups, axis=-1, keepdims=True) - low) / steps)
    index = jnp.clip(jnp.round((groups - low) / scale), 0, steps)
    rounded = (index * scale + low).astype(jnp.bfloat16).reshape(w.shape)
    return Rounded(rounded, bits + 2 * _SCALE_BITS / size)


def by_qwix(w: jax.Array, kind: str) -> Rounded:
    """Groups with a scale, by qwix (github.com/google/qwix), for example "int4" or "nf4"."""
    try:
        import qwix
    except ImportError as error:
        raise UserError(
            "qwix is not installed: run pip install qwix, or leave --peers out"
        ) from error
    coded = qwix.quantize(w, kind, channelwise_axes=(0,), tiled_axes={1: GROUP})
    return Rounded(qwix.dequantize(coded).astype(jnp.bfloat16), 4 + _SCALE_BITS / GROUP)


BASELINES: dict[str, Callable[[jax.Array], Rounded]] = {
    "int4, groups of 128": lambda w: symmetric(w, 4, GROUP),
    "int4 with minimum, groups of 128": lambda w: asymmetric(w, 4, GROUP),
    "int8 per row": lambda w: symmetric(w, 8, w.shape[1]),
}

PEERS: dict[str, Callable[[jax.Array], Rounded]] = {
    "qwix int4, groups of 128": lambda w: by_qwix(w, "int4"),
    "qwix nf4, groups of 128": lambda w: by_qwix(w, "nf4"),
}
