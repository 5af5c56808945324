"""The Llama decoder as a Flax module over explicit parameters.

The residual stream, norms, softmax and logits are float32; what enters a matmul has the dtype of
the activations. Residency and KV cache go in as arguments and come out as results.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import kernels_pallas
from codecjax.models.config import LlamaConfig, RopeScaling
from codecjax.models.linear import TiledLinear
from codecjax.models.parameters import EMBEDDING, at, sharing_inputs
from codecjax.tiles import Residency, TiledMatrix
from kernels_pallas.implementations import XLA
from kernels_pallas.inputs import Gated, Mixed, Normed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys (rotated) and values of one layer's past positions.

    Attributes:
      keys, values: [B, KV, C, HD] in the dtype of the activations; C is the capacity.
    """

    keys: jax.Array
    values: jax.Array


Cache = tuple[LayerCache, ...]
# What is multiplied or attended to next.
Following = tuple[TiledMatrix | jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class _Where:
    """Where the tokens at hand stand in their sequences.

    Attributes:
      start: position of the first of them, an int32 scalar.
      rotation: cosines and then sines of their positions' angles, float32[2, S, HD / 2].
    """

    start: jax.Array
    rotation: jax.Array


def empty_cache(config: LlamaConfig, batch: int, capacity: int, activations: str) -> Cache:
    """A KV cache for `capacity` positions of each of `batch` sequences, all zeros."""
    shape = (batch, config.kv_heads, capacity, config.head_dim)
    return tuple(
        LayerCache(jnp.zeros(shape, activations), jnp.zeros(shape, activations))
        for _ in range(config.layers)
    )


def rotary_frequencies(config: LlamaConfig) -> np.ndarray:
    """float32[HD / 2]: radians per position of each pair of a head's dimensions."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = (1 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    return _llama3_frequencies(frequencies, scaling)


def _llama3_frequencies(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    turns = scaling.original_context * frequencies / np.float32(2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    scaled = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    return scaled.astype(np.float32)


def _rotation(config: LlamaConfig, start: jax.Array, count: int) -> jax.Array:
    positions = start + jnp.arange(count, dtype=jnp.int32)
    angles = positions[:, None].astype(jnp.float32) * rotary_frequencies(config)
    # One array of both is one launch.
    is_cosine = jnp.arange(2)[:, None, None] == 0
    return jnp.where(is_cosine, jnp.cos(angles), jnp.sin(angles))


def _rotate(x: jax.Array, rotation: jax.Array) -> jax.Array:
    """Turns the pairs (i, i + HD / 2) of x[B, S, heads, HD] by their position's angle."""
    cosine, sine = rotation[:, :, None, :]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


class RMSNorm(nnx.Module):
    """x divided by its root mean square, times a scale [D]."""

    def __init__(self, scale: jax.Array, eps: float, activations: str) -> None:
        self.scale = nnx.Param(scale)
        self.eps = eps
        self.activations = activations

    def __call__(self, x: jax.Array) -> Normed:
        """[N, D] of the activations' dtype, of float32[N, D], for a matmul to make."""
        return Normed(x, self.scale.get_value(), self.eps, self.activations)


class Attention(nnx.Module):
    """Causal attention; groups of query heads share a key/value head."""

    def __init__(
        self, config: LlamaConfig, projections: Mapping[str, TiledLinear], activations: str
    ) -> None:
        self.inputs, self.output = projections["query"], projections["output"]
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_dim = config.head_dim
        self.activations = activations

    def __call__(
        self,
        x: Normed,
        stream: jax.Array,
        batch: int,
        where: _Where,
        cache: LayerCache | None,
        residency: Residency | None,
        following: Following,
    ) -> tuple[jax.Array, LayerCache | None, Residency | None]:
        """`stream` float32[B * S, D] with attention to x added; cache and residency after it."""
        next_ones: Following = (*self.output.tiled, *following)
        in_a_kernel = cache is not None and x.shape[0] == 1 and self._in_a_kernel
        if cache is not None and in_a_kernel:
            next_ones = (cache.keys, cache.values, *next_ones)
        (queries, keys, values), residency = self.inputs(x, residency, following=next_ones)
        if cache is not None and in_a_kernel:
            attended, cache = self._attend_in_kernel(queries, keys, values, where, cache)
            (y,), residency = self.output(attended, residency, stream, following)
            return y, cache, residency
        queries = _rotate(self._by_head(queries, batch, self.heads), where.rotation)
        keys = _rotate(self._by_head(keys, batch, self.kv_heads), where.rotation)
        values = self._by_head(values, batch, self.kv_heads)
        queries, keys, values = (
            jnp.swapaxes(each, 1, 2).astype(self.activations) for each in (queries, keys, values)
        )
        if cache is not None:
            place = (0, 0, where.start, 0)
            cache = LayerCache(
                jax.lax.dynamic_update_slice(cache.keys, keys, place),
                jax.lax.dynamic_update_slice(cache.values, values, place),
            )
            # Several tokens begin a sequence: there is nothing before them to attend to.
            if queries.shape[2] == 1:
                keys, values = cache.keys, cache.values
        mixed = self._attend(queries, keys, values, where.start)
        (y,), residency = self.output(mixed.astype(self.activations), residency, stream, following)
        return y, cache, residency

    @property
    def _in_a_kernel(self) -> bool:
        """Whether attention of a single token to the cache is a kernel of ours."""
        implementation = kernels_pallas.resolve(self.inputs.implementation)
        return kernels_pallas.attention_implementation(implementation, self.head_dim) != XLA

    def _attend_in_kernel(
        self,
        queries: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        where: _Where,
        cache: LayerCache,
    ) -> tuple[Mixed, LayerCache]:
        """[1, H * HD], and the cache, of one token's products float32[1, heads * HD]."""
        # XLA takes this for the kernel's one array that these are slices of.
        heads = jnp.concatenate([queries, keys, values], axis=1)
        mixed, (keys_after, values_after) = kernels_pallas.attend(
            heads.reshape(-1, self.head_dim),
            where.rotation[:, 0],
            (cache.keys[0], cache.values[0]),
            where.start,
        )
        return mixed, LayerCache(keys_after[None], values_after[None])

    def _by_head(self, x: jax.Array, batch: int, heads: int) -> jax.Array:
        return x.reshape(batch, -1, heads, self.head_dim)

    def _attend(
        self, queries: jax.Array, keys: jax.Array, values: jax.Array, start: jax.Array
    ) -> jax.Array:
        """float32[B * S, H * HD] of queries [B, H, S, HD], keys and values [B, KV, C, HD].

        Keys are at positions 0 to C - 1. Queries are at `start` on; several only at 0.
        """
        batch, _, count, _ = queries.shape
        grouped = queries.reshape(batch, self.kv_heads, -1, count, self.head_dim)
        options: dict[str, Any] = {
            "precision": jax.lax.Precision.HIGHEST,
            "preferred_element_type": jnp.float32,
        }
        scores = jnp.einsum("bkgsd,bkcd->bkgsc", grouped, keys, **options)
        seen = jnp.arange(keys.shape[2]) <= start + jnp.arange(count)[:, None]
        scores = jnp.where(seen, scores * self.head_dim**-0.5, -jnp.inf)
        shares = jax.nn.softmax(scores, axis=-1).astype(self.activations)
        mixed = jnp.einsum("bkgsc,bkcd->bkgsd", shares, values, **options)
        mixed = mixed.reshape(batch, self.heads, count, self.head_dim)
        return jnp.swapaxes(mixed, 1, 2).reshape(batch * count, -1)


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, projections: Mapping[str, TiledLinear], activations: str) -> None:
        self.inputs, self.down = projections["gate"], projections["down"]
        self.activations = activations

    def __call__(
        self, x: Normed, stream: jax.Array, residency: Residency | None, following: Following
    ) -> tuple[jax.Array, Residency | None]:
        """`stream` float32[N, D] with that of x added, and the residency after it."""
        next_ones = (*self.down.tiled, *following)
        (gate, up), residency = self.inputs(x, residency, following=next_ones)
        gated = Gated(gate, up, self.activations)
        (y,), residency = self.down(gated, residency, stream, following)
        return y, residency


class Layer(nnx.Module):
    """Attention and MLP, each on the normed residual stream and added to it."""

    def __init__(
        self,
        config: LlamaConfig,
        weights: Mapping[str, Any],
        projections: Mapping[str, TiledLinear],
        activations: str,
    ) -> None:
        self.attention_norm = RMSNorm(weights["attention_norm"], config.rms_eps, activations)
        self.attention = Attention(config, projections, activations)
        self.mlp_norm = RMSNorm(weights["mlp_norm"], config.rms_eps, activations)
        self.mlp = MLP(projections, activations)

    def __call__(
        self,
        x: jax.Array,
        batch: int,
        where: _Where,
        cache: LayerCache | None,
        residency: Residency | None,
        following: Following,
    ) -> tuple[jax.Array, LayerCache | None, Residency | None]:
        """The residual stream float32[B * S, D], cache and residency after the layer.

        `following` are the matrices after it.
        """
        x, cache, residency = self.attention(
            self.attention_norm(x), x, batch, where, cache, residency, self.mlp.inputs.tiled
        )
        x, residency = self.mlp(self.mlp_norm(x), x, residency, following)
        return x, cache, residency


class Llama(nnx.Module):
    """The decoder."""

    def __init__(
        self,
        config: LlamaConfig,
        parameters: Mapping[str, Any],
        implementation: str | None = None,
        activations: str = "float32",
        linear: type[TiledLinear] = TiledLinear,
    ) -> None:
        """Builds it around given weights.

        Args:
          config: sizes and constants.
          parameters: the tree of `codecjax.models.parameters`. Projections and the embedding are
            TiledMatrix or arrays, norms arrays, of any float dtype.
          implementation: of the matmuls with a TiledMatrix.
          activations: "float32", or "bfloat16" for speed and for mosaic_gpu.
          linear: what multiplies by projections; a subclass may watch what it is given.
        """
        projections: dict[tuple[str, ...], TiledLinear] = {}
        first_tile = 0
        for group in sharing_inputs(config):
            weights = [at(parameters, parameter) for parameter in group]
            projections[group[0].path] = linear(weights, first_tile, implementation)
            first_tile += sum(t.tiles for t in weights if isinstance(t, TiledMatrix))
        names = [f"layers_{index}" for index in range(config.layers)]
        self.config = config
        self.implementation = implementation
        self.activations = activations
        self.embedding = nnx.Param(parameters[EMBEDDING])
        self.layers = nnx.List(
            Layer(
                config,
                parameters[name],
                {path[1]: each for path, each in projections.items() if path[0] == name},
                activations,
            )
            for name in names
        )
        self.final_norm = RMSNorm(parameters["final_norm"], config.rms_eps, activations)
        self.head = None if config.tied else projections["head",]
        # A tied embedding's tiles follow those of all projections.
        self.tied_tile = first_tile

    def hidden(
        self,
        tokens: jax.Array,
        start: jax.Array | int = 0,
        cache: Cache | None = None,
        residency: Residency | None = None,
    ) -> tuple[jax.Array, Cache | None, Residency | None]:
        """The residual stream after the last layer.

        Args:
          tokens: int32[B, S].
          start: position of the first token. With a cache, S > 1 only at position 0.
          cache: of the positions before `start`; with room for these.
          residency: of the weights' tiles; None decodes every tile.

        Returns:
          float32[B, S, D], and cache and residency afterwards.
        """
        batch, count = tokens.shape
        first = jnp.asarray(start, jnp.int32)
        where = _Where(first, _rotation(self.config, first, count))
        x = self._embed(tokens.reshape(-1))
        after: list[LayerCache] = []
        for index, layer in enumerate(self.layers):
            before = None if cache is None else cache[index]
            following: Following = () if self.head is None else self.head.tiled
            if index + 1 < len(self.layers):
                following = self.layers[index + 1].attention.inputs.tiled
            x, layer_cache, residency = layer(x, batch, where, before, residency, following)
            if layer_cache is not None:
                after.append(layer_cache)
        return x.reshape(batch, count, -1), None if cache is None else tuple(after), residency

    def logits(
        self, hidden: jax.Array, residency: Residency | None = None
    ) -> tuple[jax.Array, Residency | None]:
        """float32[..., V] of the residual stream float32[..., D], and the residency after it."""
        head = self.head
        if head is None:
            embedding = self.embedding.get_value()
            head = TiledLinear((embedding,), self.tied_tile, self.implementation)
        x = self.final_norm(hidden.reshape(-1, hidden.shape[-1]))
        # The next step begins with the first layer.
        (logits,), residency = head(x, residency, following=self.layers[0].attention.inputs.tiled)
        return logits.reshape(*hidden.shape[:-1], -1), residency

    def _embed(self, tokens: jax.Array) -> jax.Array:
        """float32[N, D] of tokens int32[N]."""
        embedding = self.embedding.get_value()
        if isinstance(embedding, TiledMatrix):
            return kernels_pallas.lookup(
                embedding, tokens, "float32", implementation=self.implementation
            )
        return embedding[tokens].astype(jnp.float32)


def forward(
    parameters: Mapping[str, Any],
    tokens: jax.Array,
    *,
    config: LlamaConfig,
    implementation: str | None = None,
    activations: str = "float32",
) -> jax.Array:
    """Logits of whole sequences; differentiable where the projections are arrays.

    Args:
      parameters: the tree of `codecjax.models.parameters`, see `Llama`.
      tokens: int32[B, S].
      config: sizes and constants.
      implementation: of the matmuls with a TiledMatrix.
      activations: "float32" or "bfloat16", what enters a matmul.

    Returns:
      float32[B, S, V].
    """
    llama = Llama(config, parameters, implementation, activations)
    hidden, _, _ = llama.hidden(tokens)
    return llama.logits(hidden)[0]
