"""What a matrix multiplies: an array, or one that is made of others, if need be inside the kernel.

A launch that only norms or gates takes as long as a small product, so the kernel for few rows does
it on the way. Everything else takes `value_of`.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normed:
    """Rows divided by their root mean square (of which `eps` is added to the square), times scales.

    Attributes:
      x: float32[N, K].
      scale: [K].
      eps: positive.
      dtype: that the result is rounded to.
    """

    x: jax.Array
    scale: jax.Array
    eps: float = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.x.shape

    def value(self) -> jax.Array:
        """[N, K] of the dtype."""
        mean_square = jnp.mean(jnp.square(self.x), axis=-1, keepdims=True)
        normal = self.x * jax.lax.rsqrt(mean_square + self.eps)
        return (normal * self.scale.astype(jnp.float32)).astype(self.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gated:
    """silu(gate) * up.

    Attributes:
      gate, up: float32[N, K].
      dtype: that the result is rounded to.
    """

    gate: jax.Array
    up: jax.Array
    dtype: str = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.gate.shape

    def value(self) -> jax.Array:
        """[N, K] of the dtype."""
        return (jax.nn.silu(self.gate) * self.up).astype(self.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixed:
    """One token's attention to a context, of which each part was attended to by itself.

    A part counts as the sum of its exponentiated scores.

    Attributes:
      parts: float32[H, P, HD], of each part its mixture of values.
      weights: float32[H, P], logarithms of the sums.
      dtype: that the result is rounded to.
    """

    parts: jax.Array
    weights: jax.Array
    dtype: str = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """(1, H * HD)."""
        heads, _, head_dim = self.parts.shape
        return 1, heads * head_dim

    def value(self) -> jax.Array:
        """[1, H * HD] of the dtype."""
        shares = jax.nn.softmax(self.weights, axis=1)
        mixed = jnp.sum(shares[..., None] * self.parts, axis=1)
        return mixed.reshape(self.shape).astype(self.dtype)


Made = Normed | Gated | Mixed
type Input = jax.Array | Normed | Gated | Mixed


def value_of(x: Input) -> jax.Array:
    """[N, K] of its dtype."""
    return x.value() if isinstance(x, Made) else x
