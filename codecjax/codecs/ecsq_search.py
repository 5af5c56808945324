"""The search of `ecsq` for a plan, where what a plan does to weights changes what was counted.

That is so where rows are shifted, which makes their weights smaller, and where errors are fed back,
which spreads weights more.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import ecsq_plan, rans_coder
from codecjax.codecs.ecsq_feedback import compensated
from codecjax.codecs.ecsq_histogram import Histogram, histogram, spread_bins
from codecjax.codecs.ecsq_importance import Weighing
from codecjax.codecs.ecsq_levels import importance_of
from codecjax.codecs.ecsq_plan import Layout, Plan, Target
from codecjax.codecs.ecsq_quantiser import quantise, row_scale, row_shifts
from codecjax.codecs.rans import units_of_group
from codecjax.tiles import units_per_tile

# Where a row's code has its shift, above its table.
SHIFT = 3
# Rows that may saturate without being counted anew, as a share of all, and how often they are.
_FEW, _RECOUNTS = 0.01, 2
# How often weights are counted anew after errors were fed back to them.
_FEEDBACKS = 2


def layout_for(shapes: Sequence[tuple[int, int]], tile: tuple[int, int], copies: int) -> Layout:
    """What is stored of matrices of `shapes` beside their coded symbols.

    Args:
      shapes: [OUT, K] of each.
      tile: (rows, columns).
      copies: how many pools of arrays they make.
    """
    rows, columns = tile
    down = [-(-out // rows) for out, _ in shapes]
    tiles = sum(each * -(-k // columns) for each, (_, k) in zip(down, shapes, strict=True))
    groups = tiles * units_per_tile(tile) // units_of_group(tile)
    lanes = groups * rans_coder.LANES
    return Layout(
        weights=sum(out * k for out, k in shapes),
        lanes=lanes,
        fixed_bits=32 * (lanes + groups * rans_coder.WARPS) + 8 * rows * sum(down),
        copies=copies,
    )


def search(
    padded: Callable[[], Iterable[tuple[jax.Array, Weighing]]],
    layout: Callable[[], Layout],
    target: Target,
    counted: Histogram | None,
) -> tuple[Plan, Histogram]:
    """The plan for weights, and the counts that it was made with.

    Args:
      padded: gives the weights bf16[OUT, K] and how their columns' errors count, each time it is
        called.
      layout: says what is stored of them, once they were given.
      target: what to meet.
      counted: counts of them, where they are known.
    """
    feeds_back = False

    def first() -> Iterator[tuple[jax.Array, np.ndarray]]:
        nonlocal feeds_back
        for w, how in padded():
            feeds_back |= how.taken is not None
            yield w, how.levels

    counts = counted or histogram(first())
    found = _plan_of(counts, padded, layout, target)
    if not feeds_back:
        return found, counts

    def fed_back() -> Iterator[tuple[jax.Array, Weighing]]:
        for w, how in padded():
            yield quantised(w, how, before)[1].astype(jnp.bfloat16), how

    # Weights that make up for errors are spread more, by what the plan before them lost.
    for _ in range(_FEEDBACKS):
        before = found
        counts = histogram((w, how.levels) for w, how in fed_back())
        found = _plan_of(counts, fed_back, layout, target)
    return found, counts


def _plan_of(
    counts: Histogram,
    padded: Callable[[], Iterable[tuple[jax.Array, Weighing]]],
    layout: Callable[[], Layout],
    target: Target,
) -> Plan:
    """The plan for weights that were counted; arguments of `search`."""
    found = ecsq_plan.make_plan(counts, layout(), target)
    for _ in range(_RECOUNTS):
        # Where rows are many that would saturate they are shifted, and then counts differ.
        reach = found.step * (found.symbols.largest + 0.5)
        if np.mean(counts.tops.astype(np.float64) > reach) <= _FEW:
            break
        shifted = histogram((_shifted(w, found)[0], how.levels) for w, how in padded())
        recounted = dataclasses.replace(
            shifted, tops=counts.tops, mean=counts.mean, is_shifted=True
        )
        found = ecsq_plan.make_plan(recounted, layout(), target)
    return found


def _shifted(w: jax.Array, plan: Plan) -> tuple[jax.Array, np.ndarray]:
    """Weights bf16[OUT, K] over what rows are coarser by than the plan's step, and their shifts."""
    table = plan.tables_of(np.asarray(spread_bins(w)))
    shift = row_shifts(w, plan.step, plan.largest[table])
    if not shift.any():
        return w, shift
    scale = row_scale(jnp.float32(1), jnp.asarray(shift, jnp.uint32))
    return (w.astype(jnp.float32) / scale[:, None]).astype(jnp.bfloat16), shift


def quantised(
    padded: jax.Array, how: Weighing, plan: Plan
) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Indices int16[OUT, K], the weights [OUT, K] that they are of, and rows int[OUT] as stored.

    These weights are the padded ones, unless errors are fed back.
    """
    shifted, shift = _shifted(padded, plan)
    own = plan.tables_of(np.asarray(spread_bins(padded)))
    table = plan.tables_of(np.asarray(spread_bins(shifted)))
    # A row is shifted for the largest index of its own table.
    table = np.where(plan.largest[table] < plan.largest[own], own, table)
    given = (
        padded,
        row_scale(jnp.float32(plan.step), jnp.asarray(shift, jnp.uint32)),
        jnp.asarray(plan.zones),
        jnp.asarray(plan.largest),
        jnp.asarray(table, jnp.int32),
        jnp.asarray(importance_of(how.levels), jnp.float32),
    )
    if how.taken is None:
        index, weights = quantise(*given), padded
    else:
        index, weights = compensated(*given, how.taken)
    return index, weights, table | shift << SHIFT
