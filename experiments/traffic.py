"""Bytes: what a step must read from device memory, and what the device holds."""

import dataclasses
import gc

import jax
import numpy as np

from codecjax.codecs import cacheable_tiles
from codecjax.models.model import Model
from codecjax.models.parameters import EMBEDDING, walk
from codecjax.tiles import page_bytes


@dataclasses.dataclass(frozen=True)
class WeightTraffic:
    """Bytes of weights that a step of one token must read.

    Attributes:
      tile_bytes: float64[TILES], bytes to read a compressed tile, its share of the matrix's
        side lists included; 0 for tiles that are stored uncompressed.
      page_bytes: bytes to read a decoded tile from its page.
      constant_bytes: what every step reads whatever is resident: uncompressed tiles and
        matrices, norms, and one row of the embedding unless it is the head too.
    """

    tile_bytes: np.ndarray
    page_bytes: int
    constant_bytes: float

    def step_bytes(self, page_table: np.ndarray) -> float:
        """Bytes that a step with this page table reads."""
        compressed = self.tile_bytes > 0
        decoded = compressed & (page_table < 0)
        resident = int(np.count_nonzero(compressed & (page_table >= 0)))
        return (
            float(self.tile_bytes[decoded].sum()) + resident * self.page_bytes + self.constant_bytes
        )


def weight_traffic(model: Model) -> WeightTraffic:
    """The traffic of a model's weights."""
    page = page_bytes(model.tile)
    tile_bytes = np.zeros(model.tile_count)
    constant = 0.0
    for name, t in model.matrices.items():
        compressed = cacheable_tiles(t)
        count = int(compressed.sum())
        if not count:
            constant += t.nbytes
            continue
        verbatim = (t.tiles - count) * page
        first = model.first_tiles[name]
        tile_bytes[first : first + t.tiles][compressed] = (t.nbytes - verbatim) / count
        constant += verbatim
    for parameter, weight in walk(model.config, model.parameters):
        if parameter.name not in model.matrices:
            rows = parameter.shape[0] if parameter.name == EMBEDDING else 1
            constant += weight.nbytes / rows
    return WeightTraffic(tile_bytes, page, constant)


def device_bytes_in_use() -> tuple[int, str]:
    """Bytes that the default device holds now, and who counted them.

    That is "memory_stats" where the device counts its own memory; elsewhere "live arrays", the
    sum over all of JAX's arrays.
    """
    gc.collect()
    statistics = jax.devices()[0].memory_stats() or {}
    if "bytes_in_use" in statistics:
        return int(statistics["bytes_in_use"]), "memory_stats"
    return sum(array.nbytes for array in jax.live_arrays()), "live arrays"
