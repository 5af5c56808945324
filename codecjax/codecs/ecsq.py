"""The `ecsq` codec: lossy, entropy-coded scalar quantisation at a target rate or distortion.

A weight is index * step of its row, in float32 and rounded to bf16 once. `ecsq_plan` finds the
step, one for all matrices that are encoded together, and `ecsq_quantiser` the indices. Units and
registers are those of `window_layout`; groups of units are those of `rans`; `ecsq_symbols` says
how the indices of a group are its symbols.

Arrays, for T tiles of G groups:

    states    uint32[T, G, 128]        see `rans_coder`
    starts    uint32[T, G, 4]
    stream    uint16[LENGTH]
    table     uint32[TABLES, 2**bits]  TABLES is at most 8
    step      float32[TABLES]
    rows      uint8[tile rows of the grid, rows of a tile]   table | shift << 3: a row's step is
              that of its table times 2 ** (shift / 4), see `ecsq_quantiser.row_scale`

Several matrices may share their arrays, see `window_pool`; a row's table counts from the first of
its matrix. A matrix that this would expand is stored as the single array `dense` bf16[OUT, K].
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import rans_coder, window_layout, window_pool
from codecjax.codecs.ecsq_importance import Weighing, weighing
from codecjax.codecs.ecsq_plan import Plan, Target
from codecjax.codecs.ecsq_quantiser import dequantise, row_scale
from codecjax.codecs.ecsq_search import SHIFT, layout_for, quantised, search
from codecjax.codecs.ecsq_symbols import (
    SymbolLayout,
    layout_of,
    tables_of_steps,
    to_indices,
    to_symbols,
)
from codecjax.codecs.intervals import Interval
from codecjax.codecs.rans import units_of_group
from codecjax.codecs.window_pool import place_of
from codecjax.codecs.window_units import padded_to
from codecjax.errors import UserError
from codecjax.tiles import TiledMatrix

VERSION = 1
# A target `mse` above 0 is met instead of the rate.
OPTIONS = {"bits_per_weight": 4.0, "mse": 0.0}
CHOICES = {"bits_per_weight": Interval(2.0, 8.0), "mse": Interval(0.0, 1e30)}
LOSSY = True
# Errors of some columns may count more than those of others.
WEIGHS = True

_TABLE_MASK = 7
# How near a rate is to its target, as a share of it: where trials end, and where they must.
_CLOSE, _CLOSE_ENOUGH = 0.005, 0.02
_TRIALS = 4


def needs_decode(t: TiledMatrix) -> jax.Array:
    """bool[T]: False for a dense matrix."""
    return jnp.full(t.tiles, not t.is_dense)


def pooled(matrices: Sequence[TiledMatrix]) -> tuple[TiledMatrix, ...]:
    """The same matrices, in arrays that they share where their tables are equally large."""
    slots = {t.arrays["table"].shape[-1] for t in matrices if not t.is_dense}
    return window_pool.pooled(matrices) if len(slots) == 1 else tuple(matrices)


def plan(
    weights: Callable[[], Iterable[jax.Array]],
    tile: tuple[int, int],
    copies: int,
    importance: Sequence[np.ndarray] | None = None,
    **options: float,
) -> Plan:
    """One step and the tables for several matrices, which together meet the target.

    Args:
      weights: gives them, bf16[OUT, K] each, each time it is called.
      tile: (rows, columns).
      copies: how many pools of arrays the matrices will make.
      importance: of the columns of each, as of `encode`; None where all are as important.
      **options: the codec's.

    Raises:
      UserError: a weight is not finite, or the rate cannot be met.
    """
    target = Target(**options)
    shapes: list[tuple[int, int]] = []

    known: list[Weighing] = []

    def padded() -> Iterator[tuple[jax.Array, Weighing]]:
        shapes.clear()
        for w in weights():
            whole = padded_to(w, tile)
            number = len(shapes)
            if number == len(known):
                own = None if importance is None else importance[number]
                known.append(weighing(own, whole.shape[1]))
            shapes.append((w.shape[0], w.shape[1]))
            yield whole, known[number]

    found = search(padded, lambda: layout_for(shapes, tile, copies), target, None)[0]
    if target.mse == 0 and found.expected_bits > (1 + _CLOSE_ENOUGH) * target.bits_per_weight:
        raise _unmet(found.expected_bits, target, f"{len(shapes)} matrices", tile)
    return found


def _unmet(bits: float, target: Target, what: str, tile: tuple[int, int]) -> UserError:
    """What to say where the bits a weight exceed the target rate."""
    return UserError(
        f"codec 'ecsq' with tiles of {tile[0]}x{tile[1]} needs {bits:.3g} bits a weight for "
        f"{what}, tables and padding included, which exceeds bits_per_weight "
        f"{target.bits_per_weight:g}: raise that, or choose tiles that they fill"
    )


def encode(
    w: jax.Array,
    tile: tuple[int, int],
    bits_per_weight: float,
    mse: float,
    plan: Plan | None = None,
    importance: np.ndarray | None = None,
) -> TiledMatrix:
    """Encodes bf16[OUT, K].

    Args:
      w: finite weights.
      tile: (rows, columns).
      bits_per_weight: the rate to meet within 2 %, everything included. Few weights may have
        less, where more would not make them better; those too few to pay for a table of 4 KiB
        and for 528 bytes of states each 32,768 weights cannot meet it.
      mse: where above 0, the mean squared error to meet instead, whatever the importance; where
        errors are fed back, that of the weights that they were fed back to.
      plan: what to encode with instead of what meets the targets for this matrix alone.
      importance: how much errors of each column count, float32[K] above 0, or mean products of
        the inputs float32[K, K], with which errors are fed back too; None where all columns are
        as important.

    Raises:
      UserError: a weight is not finite, or the rate cannot be met.
    """
    target = Target(bits_per_weight, mse)
    padded = padded_to(w, tile)
    how = weighing(importance, padded.shape[1])
    shape = (w.shape[0], w.shape[1])
    if plan is not None:
        return _encode(padded, how, shape, tile, target, plan)
    most = (1 + _CLOSE_ENOUGH) * bits_per_weight
    aim, counts, trials = target, None, []
    for _ in range(_TRIALS):
        found, counts = search(
            lambda: [(padded, how)], lambda: layout_for([shape], tile, 1), aim, counts
        )
        trials.append(_encode(padded, how, shape, tile, target, found))
        excess = trials[-1].bits_per_weight - bits_per_weight
        if mse > 0 or abs(excess) <= _CLOSE * bits_per_weight:
            return trials[-1]
        aim = dataclasses.replace(aim, bits_per_weight=max(aim.bits_per_weight - excess, 0.0))
    below = [t for t in trials if t.bits_per_weight <= most]
    if below:
        return max(below, key=lambda t: t.bits_per_weight)
    raise _unmet(trials[-1].bits_per_weight, target, f"a matrix of {shape[0]}x{shape[1]}", tile)


def _encode(
    padded: jax.Array,
    how: Weighing,
    shape: tuple[int, int],
    tile: tuple[int, int],
    target: Target,
    plan: Plan,
) -> TiledMatrix:
    """Encodes a matrix that was padded to whole tiles."""
    options = tuple(sorted(dataclasses.asdict(target).items()))
    index, _, codes = quantised(padded, how, plan)
    rows = jnp.asarray(codes, jnp.uint8).reshape(-1, tile[0])
    symbols = to_symbols(index, tile, plan.symbols)
    steps = _steps(tile, plan.symbols)
    by_tile_row = tables_of_steps(rows & _TABLE_MASK, tile, plan.symbols, steps)[:, None]
    groups = (*symbols.shape[:2], *by_tile_row.shape[2:])
    streams = rans_coder.encode(
        symbols.reshape(-1, *groups[-2:]),
        plan.frequencies,
        plan.symbols.bits,
        jnp.broadcast_to(by_tile_row, groups).reshape(-1, *groups[-2:]),
    )
    tiles = symbols.shape[0] * symbols.shape[1]
    arrays = {
        "states": streams.states.reshape(tiles, -1, rans_coder.LANES),
        "starts": streams.starts.reshape(tiles, -1, rans_coder.WARPS),
        "stream": streams.words,
        "table": jnp.stack(
            [
                jnp.asarray(rans_coder.decode_table(each, plan.symbols.bits))
                for each in plan.frequencies
            ]
        ),
        "step": jnp.full(len(plan.frequencies), plan.step, jnp.float32),
        "rows": rows,
    }
    t = TiledMatrix(arrays, "ecsq", VERSION, shape, tile, options)
    if t.nbytes < 2 * shape[0] * shape[1]:
        return t
    return dataclasses.replace(t, arrays={"dense": padded[: shape[0], : shape[1]]})


def _steps(tile: tuple[int, int], symbols: SymbolLayout) -> int:
    """STEPS of a group."""
    return units_of_group(tile) * window_layout.REGISTERS * symbols.steps


def decode_tile(t: TiledMatrix, index: jax.Array) -> jax.Array:
    """Decodes tile `index` (int32 scalar): bf16[rows, columns]; the definition of the format."""
    arrays, place, tile = t.arrays, place_of(t), t.tile
    slot = place.first_slot + index
    rows = arrays["rows"][place.first_row + index // t.grid[1]]
    layout = layout_of(arrays["table"])
    table = (rows & _TABLE_MASK).astype(jnp.uint32)
    steps = _steps(tile, layout)
    tables = tables_of_steps(table, tile, layout, steps) + place.first_table

    def group(states: jax.Array, starts: jax.Array, table_of: jax.Array) -> jax.Array:
        stream, table = arrays["stream"], arrays["table"]
        return rans_coder.decode_group(states, starts, stream, table, steps, table_of)

    symbols = jax.vmap(group)(arrays["states"][slot], arrays["starts"][slot], tables)
    step = arrays["step"].at[table + place.first_table].get(mode="clip")
    return dequantise(to_indices(symbols, tile, layout), row_scale(step, rows >> SHIFT))
