"""Attention of one new token as a Triton kernel: rotation, KV cache and softmax in one launch.

XLA takes six launches for it, of one to three microseconds each. Here each program has the query
heads that share a key, and a part of the context; the first part's program also stores the new key
and value. What the parts give is put together by the product that comes next, see `inputs.Mixed`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels_pallas.inputs import Mixed

# Positions from which another part pays, and the most parts: every CTA of the next product reads
# what they give.
_POSITIONS, _MOST_PARTS = 64, 8
# Of the keys that a program multiplies at once: the most positions, and the most elements.
_MOST_BLOCK, _MOST_ELEMENTS = 64, 2**14
# The least rows and columns that the matrix unit takes.
_LEAST = 16
_WARPS = 4
# Blocks of keys and values in flight or at hand.
_STAGES = 3


def attend(
    heads: jax.Array,
    rotation: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    position: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[Mixed, tuple[jax.Array, jax.Array]]:
    """As `kernels_pallas.attend`."""
    head_dim = heads.shape[1]
    kv_heads, capacity = cache[0].shape[:2]
    queries = heads.shape[0] - 2 * kv_heads
    shared = queries // kv_heads
    half = head_dim // 2
    parts = min(pl.cdiv(capacity, _POSITIONS), _MOST_PARTS)
    a_part = pl.cdiv(capacity, parts)
    block = min(_MOST_BLOCK, _MOST_ELEMENTS // head_dim, pl.next_power_of_2(a_part))
    block = max(block, _LEAST)
    blocks_a_part = pl.cdiv(a_part, block)
    rows = max(pl.next_power_of_2(shared), _LEAST)
    dtype = cache[0].dtype

    def body(*refs: Any) -> None:
        head_ref, rotation_ref, at_ref, past_keys, past_values = refs[:5]
        mixed_ref, weight_ref, new_keys, new_values = refs[5:]
        group, part = pl.program_id(0), pl.program_id(1)
        at = at_ref[0]
        column = jnp.arange(head_dim)
        partner = jnp.where(column < half, column + half, column - half)
        number = jnp.arange(rows)
        mine = jnp.broadcast_to((number < shared)[:, None], (rows, head_dim))
        angle = jnp.where(column < half, column, column - half)
        cosine = rotation_ref[jnp.zeros_like(angle), angle]
        sine = jnp.where(column < half, -1.0, 1.0) * rotation_ref[jnp.ones_like(angle), angle]

        def rounded(values: jax.Array) -> jax.Array:
            return values.astype(dtype)

        def multiplied(left: jax.Array, right: jax.Array) -> jax.Array:
            return jnp.dot(left, right, preferred_element_type=jnp.float32)

        def load(row: Any, columns: jax.Array) -> jax.Array:
            return head_ref[jnp.full(head_dim, row), columns]

        def loaded(columns: jax.Array) -> jax.Array:
            there = head_ref.at[(group * shared + number)[:, None], columns[None, :]]
            return plgpu.load(there, mask=mine, other=0.0)

        query = rounded(loaded(column) * cosine[None, :] + loaded(partner) * sine[None, :])
        key_row = queries + group
        key = rounded(load(key_row, column) * cosine + load(key_row, partner) * sine)
        value = rounded(load(key_row + kv_heads, column))

        @pl.when(part == 0)
        def _() -> None:
            new_keys[group, at, :] = key
            new_values[group, at, :] = value

        def add(turn: jax.Array, carry: Any) -> Any:
            peak, total, sums = carry
            first = (part * blocks_a_part + turn) * block
            seen = first + jnp.arange(block) < at
            mask = jnp.broadcast_to(seen[:, None], (block, head_dim))

            def past(ref: Any) -> jax.Array:
                return plgpu.load(ref.at[group, pl.ds(first, block), :], mask=mask, other=0.0)

            keys, values = past(past_keys), past(past_values)
            scores = multiplied(query, keys.T) * head_dim**-0.5
            scores = jnp.where(seen[None, :], scores, -jnp.inf)
            higher = jnp.maximum(peak, jnp.max(scores, axis=1))
            shares, kept = jnp.exp(scores - higher[:, None]), jnp.exp(peak - higher)
            # The matrix unit takes bf16, so what is lost of the shares is multiplied apart.
            coarse = rounded(shares)
            fine = rounded(shares - coarse.astype(jnp.float32))
            more = multiplied(coarse, values) + multiplied(fine, values)
            return higher, total * kept + jnp.sum(shares, axis=1), sums * kept[:, None] + more

        # The new token is the first part's, which so is never without a position.
        wide = query.astype(jnp.float32) * key.astype(jnp.float32)[None, :]
        here = part == 0
        peak = jnp.where(here, jnp.sum(wide, axis=1) * head_dim**-0.5, jnp.float32(-1e30))
        total = jnp.full(rows, jnp.where(here, jnp.float32(1), jnp.float32(0)))
        own = jnp.broadcast_to(value.astype(jnp.float32)[None, :], (rows, head_dim))
        sums = jnp.where(here, own, 0.0)
        left = jnp.maximum(at - part * (blocks_a_part * block), 0)
        blocks = jnp.minimum(pl.cdiv(left, block), blocks_a_part)
        peak, total, sums = jax.lax.fori_loop(0, blocks, add, (peak, total, sums))
        total = jnp.maximum(total, 1e-30)
        row = group * shared + number
        weights = weight_ref.at[row, jnp.full(rows, part)]
        plgpu.store(weights, peak + jnp.log(total), mask=number < shared)
        mixed = mixed_ref.at[row[:, None], jnp.full((1, 1), part), column[None, :]]
        plgpu.store(mixed, sums / total[:, None], mask=mine)

    shapes = [
        jax.ShapeDtypeStruct((queries, parts, head_dim), jnp.float32),
        jax.ShapeDtypeStruct((queries, parts), jnp.float32),
        *(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in cache),
    ]
    mixed, weights, *after = pl.pallas_call(
        body,
        out_shape=shapes,
        grid=(kv_heads, parts),
        input_output_aliases={3: 2, 4: 3},
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        interpret=interpret,
        name="attend",
    )(heads, rotation, position.reshape(1), *cache)
    return Mixed(mixed, weights, str(dtype)), (after[0], after[1])
