"""One checksum for every tile of a stored matrix: what in its arrays belongs to which tile."""

import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from codecjax.codecs.window_pool import BY_ROW, BY_SLOT, BY_TABLE
from codecjax.tiles import TiledMatrix


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1))


def tile_checksums(t: TiledMatrix, arrays: Mapping[str, np.ndarray]) -> list[int]:
    """CRC-32 of each tile, int[T]; every byte of the arrays counts for at least one tile.

    Args:
      t: the matrix, of which only the static fields are used.
      arrays: its arrays on the host. A tile of a dense matrix is a block of it. Another is
        what its slot has in the arrays of compressed tiles and in `stream`, or its verbatim
        weights; and what its tile row has, the tables, and its slot, which may be anything
        where the matrix has slots.
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
    tables = 0
    for name in BY_TABLE:
        if name in arrays:
            tables = zlib.crc32(arrays[name].tobytes(), tables)
    for index, slot in enumerate(slots):
        value = zlib.crc32(int(slot).to_bytes(4, "little", signed=True), tables)
        for name in BY_ROW:
            if name in arrays:
                value = zlib.crc32(arrays[name][index // across].tobytes(), value)
        for here in _of_slot(arrays, slot):
            value = zlib.crc32(np.ascontiguousarray(here).view(np.uint8).reshape(-1), value)
        checksums.append(value)
    return checksums


def _of_slot(arrays: Mapping[str, np.ndarray], slot: int) -> Iterator[np.ndarray]:
    """What belongs to a slot alone. A damaged one may point outside; its own bytes then tell."""
    if slot < 0:
        yield arrays["verbatim"][-(slot + 1) :][:1]
        return
    for name in BY_SLOT:
        if name in arrays:
            yield arrays[name][slot : slot + 1]
    if "stream" in arrays:
        # From its first group's first word to the next slot's; the ends go to the first and last.
        first = arrays["starts"].reshape(len(arrays["starts"]), -1)[:, 0]
        start = int(first[slot]) if 0 < slot < len(first) else 0
        end = int(first[slot + 1]) if slot + 1 < len(first) else None
        yield arrays["stream"][start:end]
