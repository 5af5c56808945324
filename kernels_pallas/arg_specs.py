"""Named shapes of real weights, and weights like them: what tests and benchmarks run on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class MatrixSpec:
    """A weight's shape.

    Attributes:
      name: model and projection.
      out, k: OUT and K of w[OUT, K].
    """

    name: str
    out: int
    k: int


# The five shapes of TinyLlama-1.1B's 155 projections.
TINYLLAMA = (
    MatrixSpec("tinyllama.key", 256, 2048),
    MatrixSpec("tinyllama.query", 2048, 2048),
    MatrixSpec("tinyllama.up", 5632, 2048),
    MatrixSpec("tinyllama.down", 2048, 5632),
    MatrixSpec("tinyllama.head", 32000, 2048),
)
# Of Llama-3.1-8B. All but the output are larger than any cache of a GPU.
LLAMA_8B = (
    MatrixSpec("llama_8b.up", 14336, 4096),
    MatrixSpec("llama_8b.down", 4096, 14336),
    MatrixSpec("llama_8b.output", 4096, 4096),
    MatrixSpec("llama_8b.head", 128256, 4096),
)
# Matrices that a step multiplies in one launch, as one: query, key and value; gate and up.
JOINT = (
    MatrixSpec("tinyllama.attention_inputs", 2048 + 256 + 256, 2048),
    MatrixSpec("tinyllama.mlp_inputs", 2 * 5632, 2048),
    MatrixSpec("llama_8b.attention_inputs", 4096 + 1024 + 1024, 4096),
    MatrixSpec("llama_8b.mlp_inputs", 2 * 14336, 4096),
)
# No multiples of a tile.
ODD = (
    MatrixSpec("odd.head", 1000, 700),
    MatrixSpec("odd.wide", 70, 1000),
)
ALL = (*TINYLLAMA, *LLAMA_8B, *ODD)
BY_NAME = {spec.name: spec for spec in (*ALL, *JOINT)}


@functools.partial(jax.jit, static_argnames=("out", "k"))
def gaussian_weight(out: int, k: int, seed: int | jax.Array) -> jax.Array:
    """bf16[OUT, K]: Gaussian rows with log-normal scales, whose exponents spread as an LLM's do."""
    row_key, weight_key = jax.random.split(jax.random.key(seed))
    scale = 0.02 * jnp.exp(0.3 * jax.random.normal(row_key, (out, 1)))
    return (scale * jax.random.normal(weight_key, (out, k))).astype(jnp.bfloat16)


def activations(n: int, k: int, seed: int) -> jax.Array:
    """bf16[N, K], standard normal."""
    return jax.random.normal(jax.random.key(seed), (n, k)).astype(jnp.bfloat16)
