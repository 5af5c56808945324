"""Attention of one new token as a Triton kernel: rotation, KV cache and softmax in one launch.

XLA takes six launches for it, of one to three microseconds each. Here each program has one query
head and a part of the context; the first program of a key's heads also stores the new key and
value.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

# What a program has of keys at once, in elements, and of positions in all before another pays.
_BLOCK, _MOST_POSITIONS = 2**16, 1024
_MOST_BLOCK = 512
_WARPS = 8


def attend(
    heads: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    cache: tuple[jax.Array, jax.Array],
    position: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """As `kernels_pallas.attend`."""
    head_dim = heads.shape[1]
    kv_heads, capacity = cache[0].shape[:2]
    queries = heads.shape[0] - 2 * kv_heads
    half = head_dim // 2
    parts = pl.cdiv(capacity, _MOST_POSITIONS)
    block = min(_BLOCK // head_dim, _MOST_BLOCK)
    blocks_a_part = pl.cdiv(pl.cdiv(capacity, parts), block)
    dtype = cache[0].dtype

    def body(*refs: Any) -> None:
        head_ref, cos_ref, sin_ref, at_ref, past_keys, past_values = refs[:6]
        mixed_ref, peak_ref, total_ref, new_keys, new_values = refs[6:]
        head, part = pl.program_id(0), pl.program_id(1)
        group = head // (queries // kv_heads)
        at = at_ref[0]
        both = (pl.ds(0, half), pl.ds(half, half))

        def load(row: Any) -> list[jax.Array]:
            """float32[HD / 2]: both halves of a head."""
            return [head_ref[row, each] for each in both]

        def rotated(row: list[jax.Array]) -> list[jax.Array]:
            cosine, sine = cos_ref[...], sin_ref[...]
            first, second = row
            turned = [first * cosine - second * sine, second * cosine + first * sine]
            return [each.astype(dtype).astype(jnp.float32) for each in turned]

        query, key = rotated(load(head)), rotated(load(queries + group))
        value = load(queries + kv_heads + group)
        value = [each.astype(dtype).astype(jnp.float32) for each in value]

        @pl.when((part == 0) & (head % (queries // kv_heads) == 0))
        def _() -> None:
            for new, ref in ((key, new_keys), (value, new_values)):
                for each, columns in zip(new, both, strict=True):
                    ref[group, at, columns] = each.astype(dtype)

        def scaled(products: jax.Array) -> jax.Array:
            return products * head_dim**-0.5

        def add(number: jax.Array, carry: Any) -> Any:
            peak, total, sums = carry
            first = (part * blocks_a_part + number) * block
            seen = first + jnp.arange(block) < at
            mask = jnp.broadcast_to(seen[:, None], (block, half))

            def rows(ref: Any) -> list[jax.Array]:
                there = [ref.at[group, pl.ds(first, block), each] for each in both]
                loaded = [plgpu.load(each, mask=mask, other=0.0) for each in there]
                return [each.astype(jnp.float32) for each in loaded]

            past, mixed = rows(past_keys), rows(past_values)
            products = sum(
                jnp.sum(k * q[None, :], axis=1) for k, q in zip(past, query, strict=True)
            )
            scores = jnp.where(seen, scaled(products), -jnp.inf)
            higher = jnp.maximum(peak, jnp.max(scores))
            shares, kept = jnp.exp(scores - higher), jnp.exp(peak - higher)
            sums = [
                old * kept + jnp.sum(v * shares[:, None], axis=0)
                for old, v in zip(sums, mixed, strict=True)
            ]
            return higher, total * kept + jnp.sum(shares), sums

        # The new token is the first part's: so no part is without any position.
        own = scaled(sum(jnp.sum(q * k) for q, k in zip(query, key, strict=True)))
        here = part == 0
        peak = jnp.where(here, own, jnp.float32(-1e30))
        total = jnp.where(here, jnp.float32(1), jnp.float32(0))
        sums = [jnp.where(here, each, 0.0) for each in value]
        left = jnp.maximum(at - part * (blocks_a_part * block), 0)
        blocks = jnp.minimum(pl.cdiv(left, block), blocks_a_part)
        peak, total, sums = jax.lax.fori_loop(0, blocks, add, (peak, total, sums))
        peak_ref[head, part], total_ref[head, part] = peak, total
        for each, columns in zip(sums, both, strict=True):
            share = each / jnp.maximum(total, 1e-30)
            mixed_ref[head, part, columns] = share.astype(mixed_ref.dtype)

    shapes = [
        jax.ShapeDtypeStruct((queries, parts, head_dim), dtype if parts == 1 else jnp.float32),
        *(jax.ShapeDtypeStruct((queries, parts), jnp.float32),) * 2,
        *(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in cache),
    ]
    mixed, peak, total, *after = pl.pallas_call(
        body,
        out_shape=shapes,
        grid=(queries, parts),
        input_output_aliases={4: 3, 5: 4},
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name="attend",
    )(heads, *rotation, position.reshape(1), *cache)
    if parts > 1:
        # Each part's mixture counts as its share of all that was exponentiated.
        weights = total * jnp.exp(peak - peak.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mixed = jnp.sum(mixed * weights[..., None], axis=1, keepdims=True)
    return mixed[:, 0].astype(dtype), (after[0], after[1])
