"""One checksum for every tile of a stored matrix: what in its arrays belongs to which tile."""

import zlib
from collections.abc import Mapping

import numpy as np

from codecjax.tiles import TiledMatrix


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1))


def tile_checksums(t: TiledMatrix, arrays: Mapping[str, np.ndarray]) -> list[int]:
    """CRC-32 of each tile, int[T]; every byte of the arrays counts for at least one tile.

    Args:
      t: the matrix, of which only the static fields are used.
      arrays: its arrays on the host. A tile of a dense matrix is a block of it; a window tile
        is its words and escapes or its verbatim weights, its tile row's bases and its slot,
        which may be anything where the matrix has slots.
    """
    across = t.grid[1]
    if "dense" in arrays:
        rows, columns = t.tile
        return [
            checksum(
                arrays["dense"][
                    index // across * rows : (index // across + 1) * rows,
                    index % across * columns : (index % across + 1) * columns,
                ]
            )
            for index in range(t.tiles)
        ]
    checksums = []
    slots = arrays["slot"].tolist() if "slot" in arrays else range(t.tiles)
    for index, slot in enumerate(slots):
        parts = (("words", "escapes"), slot) if slot >= 0 else (("verbatim",), -(slot + 1))
        names, place = parts
        value = zlib.crc32(int(slot).to_bytes(4, "little", signed=True))
        value = zlib.crc32(arrays["base"][index // across].tobytes(), value)
        for name in names:
            # A damaged slot may point outside; the slot's own bytes then tell.
            here = arrays[name][place : place + 1]
            value = zlib.crc32(np.ascontiguousarray(here).view(np.uint8).reshape(-1), value)
        checksums.append(value)
    return checksums
