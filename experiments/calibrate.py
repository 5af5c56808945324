"""How long this device takes for one matrix: to decode it, and to multiply by it either way.

Matrices of one shape and codec are interchangeable here, so each shape is timed once, by
slope, over several matrices in rotation.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import kernels_pallas
from codecjax.cache import CacheObject, with_measured_costs
from codecjax.codecs import cacheable_tiles
from codecjax.generate import resolve_activations
from codecjax.models.model import Model
from codecjax.tiles import DECODE, Residency, TiledMatrix, fill_entry, units_per_tile
from experiments.timing import slope_seconds

# Decoded bytes that a rotation should exceed, so that no cache of the device holds it, and the
# most matrices in it; a CPU is timed more briefly.
_ROTATION_BYTES = 2**27
_ROTATION = {"gpu": 32, "cpu": 2}
_REPEATS = {"gpu": 5, "cpu": 3}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Seconds to decode each matrix of a model into dense bf16, apart from everything else.

    Attributes:
      matrix_seconds: by report name; 0 for a matrix that is stored uncompressed.
      tile_seconds: float64[TILES], each matrix's seconds shared out over its compressed tiles;
        0 for tiles that are stored uncompressed.
    """

    matrix_seconds: dict[str, float]
    tile_seconds: np.ndarray

    @property
    def mean_tile_seconds(self) -> float | None:
        """Seconds per compressed tile over the whole model; None where there is none."""
        compressed = self.tile_seconds > 0
        return float(self.tile_seconds[compressed].mean()) if compressed.any() else None

    def seconds_per_tile(self, page_table: np.ndarray) -> float | None:
        """The mean over the tiles that a step with this page table decodes; None for no tile."""
        decoded = (page_table < 0) & (self.tile_seconds > 0)
        return float(self.tile_seconds[decoded].mean()) if decoded.any() else None


def calibrate_decode(model: Model, implementation: str) -> Calibration:
    """Times the decode op on every shape of the model's compressed matrices."""
    matrix_seconds = dict.fromkeys(model.matrices, 0.0)
    tile_seconds = np.zeros(model.tile_count)
    for names in _shapes(model).values():
        seconds = slope_seconds(
            lambda t: kernels_pallas.decode(t, implementation=implementation)[0],
            [model.matrices[name] for name in _rotation(model, names)],
            counts=_counts(model, names),
            repeats=_REPEATS[_backend()],
        )
        for name in names:
            compressed = cacheable_tiles(model.matrices[name])
            first = model.first_tiles[name]
            matrix_seconds[name] = seconds
            tile_seconds[first : first + compressed.size][compressed] = seconds / compressed.sum()
    return Calibration(matrix_seconds, tile_seconds)


def with_calibrated_costs(
    objects: Sequence[CacheObject], model: Model, implementation: str
) -> tuple[CacheObject, ...]:
    """The objects, one a matrix, with the seconds per step that keeping each of them saves.

    Times the matmul op with one row of x on every shape, once with all tiles absent and once
    with all resident.

    Args:
      objects: as `codecjax.models.model.cache_objects` returns them.
      model: the model they belong to.
      implementation: of the ops.
    """
    # What is stored uncompressed costs the same either way.
    decoded = dict.fromkeys((item.name for item in objects), 0.0)
    resident = dict(decoded)
    for names in _shapes(model).values():
        chosen = [model.matrices[name] for name in _rotation(model, names)]
        counts = _counts(model, names)
        for keep, seconds in ((False, decoded), (True, resident)):
            measured = _matmul_seconds(chosen, keep, implementation, counts)
            seconds.update(dict.fromkeys(names, measured))
    return with_measured_costs(objects, resident, decoded)


def _matmul_seconds(
    matrices: Sequence[TiledMatrix],
    keep: bool,
    implementation: str,
    counts: tuple[int, int],
) -> float:
    inputs = []
    for t in matrices:
        compressed = jnp.asarray(cacheable_tiles(t))
        page = jnp.arange(t.tiles, dtype=jnp.int32)
        record = jnp.zeros((t.tiles, units_per_tile(t.tile)), jnp.int32)
        fills = jnp.where(compressed, fill_entry(0) - page, DECODE)
        empty = Residency(jnp.zeros((t.tiles, *t.tile), jnp.bfloat16), fills, record)
        # Both runs carry the pages, so that what handling them costs is in both.
        filled = kernels_pallas.decode(t, empty, implementation=implementation)[1]
        assert filled is not None
        table = jnp.where(compressed & keep, page, DECODE)
        x = jnp.ones((1, t.shape[1]), resolve_activations(None, implementation))
        inputs.append((x, t, Residency(filled.pages, table, record)))

    def multiply(argument: tuple[jax.Array, TiledMatrix, Residency]) -> jax.Array:
        x, t, residency = argument
        return kernels_pallas.matmul(x, t, residency, implementation=implementation)[0]

    return slope_seconds(multiply, inputs, counts=counts, repeats=_REPEATS[_backend()])


def _backend() -> str:
    return "gpu" if jax.default_backend() == "gpu" else "cpu"


def _shapes(model: Model) -> Mapping[tuple[tuple[int, int], str], list[str]]:
    """Names of the compressed matrices by shape and codec."""
    shapes: dict[tuple[tuple[int, int], str], list[str]] = {}
    for name, t in model.matrices.items():
        if cacheable_tiles(t).any():
            shapes.setdefault((t.shape, t.codec), []).append(name)
    return shapes


def _rotation(model: Model, names: Sequence[str]) -> Sequence[str]:
    out, k = model.matrices[names[0]].shape
    wanted = -(-_ROTATION_BYTES // (2 * out * k))
    return names[: min(wanted, _ROTATION[_backend()])]


def _counts(model: Model, names: Sequence[str]) -> tuple[int, int]:
    """(n1, n2) applications: n2 goes at least once around the rotation."""
    more = max(4, len(_rotation(model, names)))
    return more // 4, more
