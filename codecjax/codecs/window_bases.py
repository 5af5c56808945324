"""Row bases of the `window` codec: the window of exponents that covers most of each row.

A window that covers more than half of a row has the row's median exponent. The median of a
sample of the row is close to it, so the windows that have that one are compared, exactly: those
that reach up to 7 above it, which goes far beyond what rows of weights need. A stranger row may
get another window than the best: it has more escapes then, and is as exact.
"""

import jax
import jax.numpy as jnp

# Weights in a row's sample, about.
_SAMPLE = 32
# As many windows are compared, because 7 counters of 4 bits and a spare one fill a word.
_WINDOWS = 8
# Columns are counted in two stages, in 4-bit and then 8-bit counters: 8 * 16 of them.
_STAGES = (8, 16)


def _exponents(bits: jax.Array) -> jax.Array:
    """uint8 exponents of uint16 bit patterns."""
    return (bits >> 7).astype(jnp.uint8)


def _medians(bits: jax.Array, columns: int) -> jax.Array:
    """int32[rows]: the median exponent of a sample of each row."""
    # An odd stride visits all places in a head or another group of columns.
    stride = max(columns // _SAMPLE, 1) | 1
    sample = _exponents(jax.lax.slice_in_dim(bits, 0, columns, stride, axis=1))
    in_order = jnp.sort(sample, axis=1, stable=False)
    return in_order[:, sample.shape[1] // 2].astype(jnp.int32)


def _counts(exponents: jax.Array, first: jax.Array, columns: int) -> jax.Array:
    """int32[rows, n, 7]: how many of each row's weights have exponent first, first + 1, ...

    Args:
      exponents: uint8[rows, K], K a multiple of 128.
      first: int32[rows, n].
      columns: how many of the K columns count.
    """
    digit = jnp.minimum(exponents[:, None] - first.astype(jnp.uint8)[..., None], _WINDOWS - 1)
    # Seven 4-bit counters, and above them one for all other exponents, which may overflow.
    ones = jnp.uint32(1) << (4 * digit.astype(jnp.uint32))
    if columns != exponents.shape[1]:
        ones = jnp.where(jnp.arange(exponents.shape[1]) < columns, ones, jnp.uint32(0))
    four_bits = ones.reshape(*first.shape, _STAGES[0], -1).sum(axis=-2, dtype=jnp.uint32)
    eight_bits = (four_bits[..., None, :] >> _shifts(0, 4)) & jnp.uint32(0x0F0F0F0F)
    eight_bits = eight_bits.reshape(*first.shape, 2, _STAGES[1], -1).sum(-2, dtype=jnp.uint32)
    each = (eight_bits[..., None, :, :] >> _shifts(0, 8, 16, 24)[..., None]) & jnp.uint32(0xFF)
    return each.sum(axis=-1, dtype=jnp.int32).reshape(*first.shape, -1)[..., : _WINDOWS - 1]


def _shifts(*values: int) -> jax.Array:
    return jnp.array(values, jnp.uint32)[:, None]


def row_bases(bits: jax.Array, columns: int, width: int) -> jax.Array:
    """int32[rows]: first exponent of each row's window, at most 256 - width.

    Args:
      bits: uint16[rows, K] bit patterns of bf16, K a multiple of 128.
      columns: how many of the K columns count.
      width: exponents in a window.
    """
    lowest = _medians(bits, columns) - (width - 1)
    lowest = jnp.clip(lowest, 0, 256 - width - (_WINDOWS - 1))
    # What each next window loses and gains.
    counts = _counts(_exponents(bits), jnp.stack([lowest, lowest + width], axis=1), columns)
    covered = jnp.cumsum(counts[:, 1] - counts[:, 0], axis=1)
    return lowest + jnp.argmax(jnp.pad(covered, ((0, 0), (1, 0))), axis=1).astype(jnp.int32)
