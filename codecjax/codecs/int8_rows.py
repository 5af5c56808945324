"""Rows of weights as int8 values and a scale: the quantiser of `int8_rans`.

A row's scale is its largest magnitude / 127, rounded to bf16 or kept in float32, and its values
are weight / scale, rounded half to even, -127..127. Where scales are bf16 both are the same on
every device. Their weights are value * scale in float32, rounded to bf16 once. Two kinds of rows
have other scales:

    below the smallest normal float32    0, and so are the row's values
    bf16, above 2**121                   2**121, beyond which 127 of them might exceed bf16
"""

import functools

import jax
import jax.numpy as jnp

LARGEST = 127
SCALE_BITS = (16, 32)
_SMALLEST_SCALE = 2.0**-126
_LARGEST_BF16_SCALE = 2.0**121


@functools.partial(jax.jit, static_argnames=("scale_bits",))
def quantise(w: jax.Array, scale_bits: int) -> tuple[jax.Array, jax.Array]:
    """Values and scales of finite weights.

    Args:
      w: bf16[OUT, K].
      scale_bits: 16 or 32.

    Returns:
      int8[OUT, K], -127..127, and bf16[OUT] or float32[OUT].
    """
    scale = jnp.max(jnp.abs(w), axis=1).astype(jnp.float32) / LARGEST
    if scale_bits == 16:
        # XLA may leave out a rounding to bf16 and back, but not this one.
        rounded = jax.lax.reduce_precision(scale, exponent_bits=8, mantissa_bits=7)
        scale = jnp.minimum(rounded, _LARGEST_BF16_SCALE)
    scale = jnp.where(scale < _SMALLEST_SCALE, 0.0, scale)
    positive = scale[:, None] > 0
    divisor = jnp.where(positive, scale[:, None], 1.0)
    magnitude = jnp.abs(w).astype(jnp.float32)
    near = jnp.round(magnitude / divisor)
    # Devices divide by way of reciprocals that are a little off, but these products are exact
    # where scales are bf16: 8 bits times 8 bits.
    lower, upper = (near - 0.5) * divisor, (near + 0.5) * divisor
    odd = near % 2 == 1
    near += (magnitude > upper) | ((magnitude == upper) & odd)
    near -= (magnitude < lower) | ((magnitude == lower) & odd)
    values = jnp.where(positive, jnp.sign(w) * jnp.minimum(near, LARGEST), 0.0).astype(jnp.int8)
    return values, scale.astype(jnp.bfloat16 if scale_bits == 16 else jnp.float32)
