"""The layout's two readings: register by register for kernels, whole arrays for the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs import window_layout as layout


def registers(sign_mantissa: jax.Array, exponents: jax.Array) -> jax.Array:
    """uint32[..., 32, 128]: two bf16 each, from their parts [..., 32, 128, 2]."""
    bits = ((sign_mantissa >> 7) << 15) | (exponents << 7) | (sign_mantissa & 0x7F)
    return bits[..., 0] | (bits[..., 1] << 16)


@pytest.mark.parametrize("width", layout.WORDS)
def test_both_readings_give_what_was_packed(width: int) -> None:
    random = np.random.default_rng(width)
    sign_mantissa = jnp.asarray(random.integers(0, 256, (3, 32, 128, 2)), jnp.uint32)
    digits = jnp.asarray(random.integers(0, width, (3, 32, 128, 2)), jnp.uint32)
    bases = jnp.asarray(random.integers(0, 256 - width, (2, 128)), jnp.uint32)
    bias = bases * jnp.uint32(1 << 7 | 1 << 23)

    words = layout.pack(registers(sign_mantissa, digits), width)
    assert words.shape == (3, layout.WORDS[width], 128)
    whole = layout.unpack_all(words, jnp.tile(bias, (16, 1)), width)
    each = layout.unpack([words[:, i] for i in range(layout.WORDS[width])], list(bias), width)
    np.testing.assert_array_equal(whole, jnp.stack(each, axis=1))
    exponents = digits + jnp.tile(bases, (16, 1))[..., None]
    np.testing.assert_array_equal(whole, registers(sign_mantissa, exponents))
