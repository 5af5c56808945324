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


Made = Normed | Gated
type Input = jax.Array | Normed | Gated


def value_of(x: Input) -> jax.Array:
    """[N, K] of its dtype."""
    return x.value() if isinstance(x, Made) else x
