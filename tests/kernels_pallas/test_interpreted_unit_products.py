"""Products with units where an entropy coder is decoded, in the interpreter: the bits of bf16's."""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from codecjax.codecs import encode, pooled
from codecjax.tiles import DECODE, Residency, fill_entry
from kernels_pallas import entropy_mosaic_gpu, matmul_mosaic_gpu, unit_products
from kernels_pallas.arg_specs import activations
from kernels_pallas.entropy_kernel import EntropyConfig
from kernels_pallas.few_rows_mosaic_gpu import FewRowsConfig
from kernels_pallas.inputs import Input, Normed
from tests.kernels_pallas.cases import (
    FIRST_TILE,
    Case,
    assert_counted,
    assert_page_holds,
    residency,
)

NO_TILE, FIRST = jnp.int32(0), jnp.int32(FIRST_TILE)
SMALL = Case("rans", (64, 256), "rans", tile=(64, 128))


def product_of_bf16(
    x: Input, *cases: Case, added: jax.Array | None = None
) -> tuple[jax.Array, ...]:
    dense = [encode(case.weight(), "bf16", case.tile) for case in cases]
    return matmul_mosaic_gpu.matmul(x, dense, None, NO_TILE, added, interpret=True)[0]


def test_warpgroups_that_share_tables_give_the_product_with_what_a_norm_makes() -> None:
    """Three groups for two CTAs of two warpgroups, of which the last has none."""
    case = dataclasses.replace(SMALL, shape=(64, 384))
    rows, scale, added = (jax.random.normal(jax.random.key(n), (2, 384)) for n in range(3))
    x = Normed(rows, scale[0].astype(jnp.bfloat16), 1e-5, "bfloat16")
    config, few = EntropyConfig(2), FewRowsConfig(1)
    made = unit_products.made_rows(x, 3, interpret=True)
    products, _ = entropy_mosaic_gpu.multiply(
        made, (case.tiled(),), None, NO_TILE, config=config, interpret=True
    )
    added = jnp.pad(added[:, :64], ((0, 0), (0, 64)))
    y = unit_products.add_up(products, x, added, few, interpret=True)
    (expected,) = product_of_bf16(x, case, added=added[:, :64])
    chex.assert_trees_all_equal(y[:, :64], expected)


def test_matrices_that_share_arrays_are_multiplied_by_one_kernel() -> None:
    """Tables, bases and slots are each one's own, and so are tiles in the page table."""
    below = Case("rans, verbatim tile", (120, 256), "rans", escapes="verbatim", tile=(64, 128))
    matrices, x = pooled("rans", (SMALL.tiled(), below.tiled())), activations(3, 256, seed=1)
    # Of the second matrix, the first row's second tile is resident; the second row's fills a page.
    held = residency(matrices[0], [DECODE] * 3 + [2, DECODE, fill_entry(4)], tiles=6)
    assert held.pages is not None
    pages = held.pages.at[2].set(below.weight()[:64, 128:])
    held = Residency(pages, held.page_table, held.decoded)
    products, after = matmul_mosaic_gpu.matmul(x, matrices, held, FIRST, interpret=True)
    chex.assert_trees_all_equal(products, product_of_bf16(x, SMALL, below))
    assert after is not None
    assert after.pages is not None
    assert_page_holds(after.pages[4], below.weight(), matrices[1], 3)
    chex.assert_trees_all_equal(jnp.delete(after.pages, 4, axis=0), jnp.delete(pages, 4, axis=0))
    assert_counted(after.decoded, matrices, hit=3)
