"""What the L2 cache is asked for: bytes of the next matrices, and none that are not theirs."""

import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs import encode, pooled
from kernels_pallas.arg_specs import gaussian_weight
from kernels_pallas.prefetch import stretches
from tests.kernels_pallas.cases import FILLS, residency

SHAPES = ((256, 512), (512, 512), (256, 512))


def bytes_of(arrays, stretch):  # type: ignore
    flat = np.asarray(arrays[stretch.array]).reshape(-1).view(np.uint8)
    return flat[stretch.start : stretch.start + stretch.size]


def test_a_pools_matrices_are_asked_for_where_they_are() -> None:
    apart = [encode(gaussian_weight(*shape, seed)) for seed, shape in enumerate(SHAPES)]
    together = pooled("window", apart)
    arrays, found = stretches(together[1:], None, 2**20)
    assert len(arrays) == 2
    words = [np.asarray(t.arrays["words"]).reshape(-1).view(np.uint8) for t in apart[1:]]
    for wanted, stretch in zip(words, found[::2], strict=True):
        np.testing.assert_array_equal(bytes_of(arrays, stretch), wanted)
    for stretch in found:
        assert stretch.start % 16 == stretch.size % 16 == 0
        assert stretch.size <= 132 * stretch.share(132) < stretch.size + 132 * 128


def test_no_more_than_the_most_is_asked_for() -> None:
    dense = [encode(gaussian_weight(*shape, 0), codec="bf16") for shape in SHAPES]
    arrays, found = stretches(dense, None, dense[0].nbytes + 1000)
    assert [stretch.size for stretch in found] == [dense[0].nbytes, 992]
    np.testing.assert_array_equal(
        bytes_of(arrays, found[1]),
        np.asarray(dense[1].arrays["dense"]).reshape(-1).view(np.uint8)[:992],
    )


def test_nothing_is_asked_for_that_may_not_be_read() -> None:
    t = encode(gaussian_weight(256, 512, 0))
    rans = encode(gaussian_weight(512, 512, 0), codec="rans")
    assert stretches([t], residency(t, FILLS), 2**20) == ((), ())
    assert stretches([rans], None, 2**20) == ((), ())


@pytest.mark.parametrize("paged", [False, True])
def test_arrays_are_asked_for_first_and_whole(paged: bool) -> None:
    t, keys = encode(gaussian_weight(256, 512, 0), codec="bf16"), jnp.ones((4, 32, 64))
    large, odd = jnp.ones((4, 64, 64)), jnp.ones(33, jnp.uint8)
    held = residency(t, FILLS) if paged else None
    arrays, found = stretches([t, large, keys, odd], held, keys.nbytes + 160)
    assert arrays[0] is keys
    # What is left goes to the matrix, unless it may be in pages.
    assert [stretch.size for stretch in found] == [keys.nbytes, 160][: 1 if paged else 2]
