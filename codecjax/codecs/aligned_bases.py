"""Row bases of the `rans` codec: digits of all rows have one distribution, and few are escapes.

One table codes the digits of a whole matrix, so rows of different scales should differ in their
bases and in nothing else. Each row's exponents are counted, relative to the row's median, in a
sample of it. Then the rows' counts are shifted against each other until each lies where it
takes the fewest bits under the distribution of all of them, round by round: hard
expectation-maximisation, of which no round can make the sum of bits larger. What is left to
choose is the window of exponents of that one distribution.
"""

import functools

import jax
import jax.numpy as jnp

# Weights in a row's sample, about.
_SAMPLE = 512
# Exponents that are counted, from so many below the median on; a window is well inside of them.
_BELOW, _COUNTED = 40, 64
_SHIFTS = (-2, -1, 0, 1, 2)
_ROUNDS = 8
# What a weight may cost at most, about: an escape has an entry of its own.
_MOST_BITS = 24


def _histograms(bits: jax.Array) -> jax.Array:
    """int32[rows, 256]: how often each exponent is in a sample of each row."""
    # An odd stride visits all places in a head or another group of columns.
    sample = bits[:, :: max(bits.shape[1] // _SAMPLE, 1) | 1]
    row = jnp.arange(bits.shape[0])[:, None]
    counts = jnp.zeros((bits.shape[0], 256), jnp.int32)
    return counts.at[row, (sample >> 7) & 0xFF].add(1)


@functools.partial(jax.jit, static_argnames=("width",))
def aligned_bases(bits: jax.Array, width: int) -> jax.Array:
    """int32[rows]: exponent of digit 0 of each row, from 0 to 256 - width.

    Args:
      bits: uint16[rows, K] bit patterns of bf16.
      width: exponents in a window.
    """
    counts = _histograms(bits)
    middle = counts.sum(axis=1, keepdims=True) // 2
    median = jnp.argmax(jnp.cumsum(counts, axis=1) > middle, axis=1)

    def counted(lowest: jax.Array) -> jax.Array:
        """float32[rows, 64]: of each row, the counts of its exponents `lowest` and above."""
        exponent = lowest[:, None] + jnp.arange(_COUNTED)
        inside = (exponent >= 0) & (exponent < 256)
        found = jnp.take_along_axis(counts, jnp.clip(exponent, 0, 255), axis=1)
        return jnp.where(inside, found, 0).astype(jnp.float32)

    def improve(_: int, lowest: jax.Array) -> jax.Array:
        share = counted(lowest).sum(axis=0)
        cost = -jnp.log2(share / share.sum() + 2.0**-_MOST_BITS)
        costs = [(counted(lowest + shift) * cost).sum(axis=1) for shift in _SHIFTS]
        return lowest + jnp.array(_SHIFTS)[jnp.argmin(jnp.stack(costs), axis=0)]

    lowest = jax.lax.fori_loop(0, _ROUNDS, improve, median - _BELOW)
    covered = jnp.cumsum(counted(lowest).sum(axis=0))
    covered = covered[width - 1 :] - jnp.pad(covered, (1, 0))[: _COUNTED - width + 1]
    return jnp.clip(lowest + jnp.argmax(covered), 0, 256 - width).astype(jnp.int32)
