"""Op: attention of one new token over a KV cache, which takes up its key and value."""

import jax

from codecjax.errors import UserError
from kernels_pallas import attention_triton
from kernels_pallas.implementations import XLA
from kernels_pallas.inputs import Mixed

TRITON = "triton"


def attention_implementation(implementation: str, head_dim: int) -> str:
    """What attends to a cache where matmuls run by that implementation: "triton" or "xla".

    The kernel wants heads of a power of 2.
    """
    power_of_2 = head_dim & (head_dim - 1) == 0
    return TRITON if implementation != XLA and power_of_2 and head_dim >= 16 else XLA


def attend(
    heads: jax.Array,
    rotation: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    position: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[Mixed, tuple[jax.Array, jax.Array]]:
    """Attends from one token to itself and all before it.

    Args:
      heads: float32[H + 2 * KV, HD] of the token: its queries, of groups of H / KV that share a
        key, then its keys and its values, none of them rotated.
      rotation: cosines and then sines of its position's angles, float32[2, HD / 2], by which the
        pairs (i, i + HD / 2) of queries and keys are turned.
      cache: rotated keys and values [KV, C, HD] of the positions before it; updated in place
        where they are donated.
      position: int32 scalar, below C.
      interpret: run in the Pallas interpreter.

    Returns:
      [1, H * HD] of the cache's dtype, for a product to make, and the cache with the token.

    Raises:
      UserError: the kernel cannot have heads of that size.
    """
    head_dim = heads.shape[1]
    if attention_implementation(TRITON, head_dim) == XLA:
        raise UserError(
            f"the attention kernel cannot have heads of {head_dim}: a power of 2 from 16 on is "
            f"needed, or implementation {XLA!r}"
        )
    return attention_triton.attend(heads, rotation, cache, position, interpret=interpret)
