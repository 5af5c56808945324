"""Products with units where an entropy coder is decoded, in the interpreter: the bits of bf16's."""

import chex
import jax
import jax.numpy as jnp
import pytest

from codecjax.codecs import encode, pooled
from codecjax.tiles import DECODE, Residency, fill_entry
from kernels_pallas import entropy_mosaic_gpu, matmul_mosaic_gpu, unit_products
from kernels_pallas.arg_specs import activations
from kernels_pallas.entropy_kernel import EntropyConfig
from kernels_pallas.few_rows_mosaic_gpu import FewRowsConfig
from kernels_pallas.inputs import Gated, Input, Normed
from tests.kernels_pallas.cases import (
    FIRST_TILE,
    Case,
    assert_counted,
    assert_page_holds,
    residency,
)

NO_TILE, FIRST = jnp.int32(0), jnp.int32(FIRST_TILE)
SMALL = Case("rans", (64, 256), "rans", tile=(64, 128))


def product_of_bf16(x: Input, *cases: Case) -> tuple[jax.Array, ...]:
    dense = [encode(case.weight(), "bf16", case.tile) for case in cases]
    return matmul_mosaic_gpu.matmul(x, dense, None, NO_TILE, interpret=True)[0]


@pytest.mark.parametrize(
    "config",
    [EntropyConfig(1, most_ctas=1), EntropyConfig(2, most_ctas=3)],
    ids=["one warpgroup takes all", "two take turns"],
)
def test_groups_taken_in_turns_give_the_product(config: EntropyConfig) -> None:
    """Eight groups and CTAs of one or two warpgroups, of which some have none in the end."""
    case = Case("rans", (128, 512), "rans", tile=(64, 128))
    x, few = activations(2, 512, seed=1), FewRowsConfig(1)
    products, _ = entropy_mosaic_gpu.multiply(
        x, (case.tiled(),), None, NO_TILE, config=config, interpret=True
    )
    y = unit_products.add_up(products, x, None, few, interpret=True)
    chex.assert_trees_all_equal(y, *product_of_bf16(x, case))


@pytest.mark.parametrize("made", [Normed, Gated])
def test_x_is_made_as_for_bf16(made: type[Normed] | type[Gated]) -> None:
    """And what is to be added is added, after a norm's factor."""
    one, other, added = (jax.random.normal(jax.random.key(seed), (2, 256)) for seed in range(3))
    x: Input = Gated(one, other, "bfloat16")
    if made is Normed:
        x = Normed(one, other[0].astype(jnp.bfloat16), 1e-5, "bfloat16")
    (y,), _ = matmul_mosaic_gpu.matmul(
        x, (SMALL.tiled(),), None, NO_TILE, added[:, :64], interpret=True
    )
    dense = encode(SMALL.weight(), "bf16", SMALL.tile)
    (expected,), _ = matmul_mosaic_gpu.matmul(
        x, (dense,), None, NO_TILE, added[:, :64], interpret=True
    )
    chex.assert_trees_all_equal(y, expected)


def test_matrices_that_share_arrays_are_multiplied_by_one_kernel() -> None:
    """Tables, bases and slots are each one's own, and so are tiles in the page table."""
    below = Case("rans, verbatim tile", (120, 256), "rans", escapes="verbatim", tile=(64, 128))
    matrices = pooled("rans", (SMALL.tiled(), below.tiled()))
    x, tiles = activations(3, 256, seed=1), 6
    expected = product_of_bf16(x, SMALL, below)
    # The last tile: of the second row of the second matrix.
    entries = [DECODE] * 5 + [fill_entry(4)]
    held = residency(matrices[0], entries, tiles)
    filled, after = matmul_mosaic_gpu.matmul(x, matrices, held, FIRST, interpret=True)
    chex.assert_trees_all_equal(filled, expected)
    assert after is not None
    assert after.pages is not None
    assert_page_holds(after.pages[4], below.weight(), matrices[1], 3)
    assert (jnp.delete(after.pages, 4, axis=0) == 7.0).all()
    assert_counted(after.decoded, matrices)

    table = residency(matrices[0], [DECODE] * 5 + [4], tiles).page_table
    resident = Residency(after.pages, table, held.decoded)
    read, hit = matmul_mosaic_gpu.matmul(x, matrices, resident, FIRST, interpret=True)
    chex.assert_trees_all_equal(read, expected)
    assert hit is not None
    assert_counted(hit.decoded, matrices, hit=5)
