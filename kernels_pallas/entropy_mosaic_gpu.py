"""Decode of the entropy-coded codecs on a GPU: `rans`, `ecsq`, and `int8_rans`.

All by `entropy_kernel`. Tiles of `int8_rans` whose values are predicted from others need a second
pass, see `predicted_tiles`; it is left out where the matrix was encoded without predictions.
"""

from collections.abc import Sequence

import jax

from codecjax.tiles import Residency, TiledMatrix
from kernels_pallas import predicted_tiles
from kernels_pallas.coded_units import UnitDecoder
from kernels_pallas.entropy_kernel import EntropyConfig, Mode, run
from kernels_pallas.index_units import IndexUnits
from kernels_pallas.rans_units import RansUnits

ENTROPY_CODED = ("ecsq", "int8_rans", "rans")
# Of those, the ones whose units are multiplied where they are decoded, if x has few rows.
FUSED = ("rans",)


def decode(
    t: TiledMatrix,
    residency: Residency | None,
    first_tile: jax.Array,
    *,
    missing_only: bool = False,
    config: EntropyConfig | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, Residency | None]:
    """bf16[OUT, K], reading resident tiles from their pages and filling pages as told.

    Args:
      t: of a codec in ENTROPY_CODED, not dense.
      residency, first_tile: as in `kernels_pallas.decode`.
      missing_only: whether to leave resident tiles out, as they happen to be.
      config: how the work is cut; None for what is known to be fast.
      interpret: run in the Pallas interpreter.
    """
    if predicted_tiles.may_occur(t):
        return predicted_tiles.decode(
            t, residency, first_tile, missing_only=missing_only, config=config, interpret=interpret
        )
    mode = Mode(dense=True, resident=not missing_only, others=True, pages=True)
    w, residency = run((t,), residency, first_tile, _decoder(t), mode, config, interpret)
    assert w is not None
    return w[: t.shape[0], : t.shape[1]], residency


def fill(
    t: TiledMatrix,
    residency: Residency,
    first_tile: jax.Array,
    *,
    config: EntropyConfig | None = None,
    interpret: bool = False,
) -> Residency:
    """The residency with pages filled as told; tiles that fill none are not decoded."""
    if residency.pages is None:
        return residency
    if predicted_tiles.may_occur(t):
        return predicted_tiles.fill(t, residency, first_tile, config=config, interpret=interpret)
    mode = Mode(dense=False, resident=False, others=False, pages=True)
    return run((t,), residency, first_tile, _decoder(t), mode, config, interpret)[1] or residency


def multiply(
    x: jax.Array,
    matrices: Sequence[TiledMatrix],
    residency: Residency | None,
    first_tile: jax.Array,
    *,
    config: EntropyConfig | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, Residency | None]:
    """Products of units, as `unit_products.add_up` takes them; tiles as of `decode`.

    Args:
      x: bf16[N, K], N at most 8.
      matrices: that `share_arrays`, of a codec in FUSED, not dense.
      residency, first_tile: as in `kernels_pallas.decode`; the matrices' tiles follow one another.
      config: how the work is cut; None for what is known to be fast.
      interpret: run in the Pallas interpreter.
    """
    mode = Mode(dense=False, resident=True, others=True, pages=True)
    products, residency = run(
        matrices, residency, first_tile, _decoder(matrices[0]), mode, config, interpret, x
    )
    assert products is not None
    return products, residency


def _decoder(t: TiledMatrix) -> UnitDecoder:
    return RansUnits.of(t) if t.codec == "rans" else IndexUnits.of(t)
