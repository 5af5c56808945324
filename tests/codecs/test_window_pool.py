"""Matrices that share their arrays are the matrices they were."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import codecjax
from codecjax.codecs import cacheable_tiles, encode, own_arrays, pooled
from codecjax.codecs.window_pool import place_to_read
from codecjax.tiles import TiledMatrix
from kernels_pallas.arg_specs import gaussian_weight

TILE = (64, 128)
every_codec = pytest.mark.parametrize("codec", ["window", "rans"])


def weight(out: int, k: int, seed: int, wild_rows: int = 0) -> jax.Array:
    """A weight; wild rows have so many escapes that their first tile must be stored verbatim."""
    return gaussian_weight(out, k, seed).at[:wild_rows, :100].set(2.0**-100)


def make(codec: str, out: int, k: int, seed: int, wild_rows: int = 0) -> TiledMatrix:
    options = {"probability_bits": 10} if codec == "rans" else {}
    return encode(weight(out, k, seed, wild_rows), codec, TILE, **options)


def matrices(codec: str) -> list[TiledMatrix]:
    return [
        make(codec, 128, 256, 1),
        make(codec, 192, 384, 2, wild_rows=3),
        make(codec, 3, 256, 3),
        make(codec, 190, 380, 4),
        make(codec, 128, 256, 5, wild_rows=3),
    ]


@every_codec
def test_matrices_come_back_out_of_their_pool(codec: str) -> None:
    before = matrices(codec)
    after = pooled(codec, before)
    assert [t.is_dense for t in after] == [False, False, True, False, False]
    assert sum("verbatim" in t.arrays for t in before) == 2
    for one, other in zip(before, after, strict=True):
        assert (one.shape, one.tile, one.options) == (other.shape, other.tile, other.options)
        expected = dict(one.arrays)
        if not one.is_dense:
            record = other.arrays["escapes"].shape[-1] - one.arrays["escapes"].shape[-1]
            expected["escapes"] = jnp.pad(one.arrays["escapes"], [(0, 0)] * 3 + [(0, record)])
        chex.assert_trees_all_equal(own_arrays(other), expected)
        chex.assert_trees_all_equal(cacheable_tiles(other), cacheable_tiles(one))
    for number, w in (
        (1, weight(192, 384, 2, 3)),
        (3, weight(190, 380, 4)),
        (4, weight(128, 256, 5, 3)),
    ):
        chex.assert_trees_all_equal(
            codecjax.decode(after[number]).view(jnp.uint16), w.view(jnp.uint16)
        )


@every_codec
def test_a_pool_holds_what_its_matrices_say(codec: str) -> None:
    after = [t for t in pooled(codec, matrices(codec)) if not t.is_dense]
    assert all(t.arrays is after[0].arrays for t in after)
    held = sum(array.nbytes for array in after[0].arrays.values())
    assert sum(t.nbytes for t in after) == held
    # Slots of a pool with verbatim tiles and longer records aside, nobody pays for the neighbours.
    record = after[0].arrays["escapes"].shape[-1]
    words = sum(one.arrays["stream"].size for one in matrices(codec) if "stream" in one.arrays)
    ends = [0, 0, 0, 2 * (after[0].arrays["stream"].size - words) if words else 0]
    assert 0 <= ends[-1] <= 2 * words / 256
    alone = [t for t in matrices(codec) if not t.is_dense]
    for one, other, end in zip(alone, after, ends, strict=True):
        slots = 0 if "slot" in one.arrays else 4 * one.tiles
        escapes = one.arrays["escapes"]
        padding = 4 * (record * escapes[..., 0].size - escapes.size)
        assert other.nbytes == one.nbytes + slots + padding + end


def test_one_matrix_alone_and_dense_ones_stay_as_they_are() -> None:
    alone, dense = (
        make("window", 128, 256, 1),
        encode(np.zeros((64, 128), jnp.bfloat16), "bf16", TILE),
    )
    assert pooled("window", [alone]) == (alone,)
    assert pooled("bf16", [dense, dense]) == (dense, dense)


def test_like_layers_look_alike_to_what_compiles() -> None:
    """Though their streams differ in length."""
    layers = [[make("rans", 512, 1024, 2 * layer + each) for each in (0, 1)] for layer in (0, 1)]
    lengths = {sum(t.arrays["stream"].size for t in layer) for layer in layers}
    pools = [pooled("rans", layer) for layer in layers]
    shapes = {tuple(array.shape for array in pool[0].arrays.values()) for pool in pools}
    places = {tuple(place_to_read(t) for t in pool) for pool in pools}
    assert (len(lengths), len(shapes), len(places)) == (2, 1, 1)
