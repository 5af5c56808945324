"""Cache objects: the tiles that are kept or decoded together, and budgets for them."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from codecjax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class CacheObject:
    """Tiles that enter and leave the cache as one, a whole matrix or part of one.

    Attributes:
      name: says which tiles these are, for example `layers.3.mlp.down`.
      tiles: int32[n], numbers among the TILES of the model; only tiles that cost a decode.
      cost: seconds per step that are saved when the object is resident.
      matrix: the matrix that one kernel call reads; None: the object is a matrix of its own.
    """

    name: str
    tiles: np.ndarray
    cost: float
    matrix: str | None = None


def split_objects(objects: Sequence[CacheObject], tiles_per_object: int) -> list[CacheObject]:
    """Cuts objects into groups of at most `tiles_per_object` tiles, for partial residency.

    A group is named by its range, `name[0:64]`, takes its share of the cost by tiles, and
    remembers the matrix. Objects that are small enough are returned as they are.

    Raises:
      UserError: `tiles_per_object` is less than 1.
    """
    if tiles_per_object < 1:
        raise UserError(
            f"cannot cut objects into groups of {tiles_per_object} tiles: give 1 or more"
        )
    groups = []
    for item in objects:
        count = len(item.tiles)
        if count <= tiles_per_object:
            groups.append(item)
            continue
        for start in range(0, count, tiles_per_object):
            stop = min(start + tiles_per_object, count)
            groups.append(
                CacheObject(
                    name=f"{item.name}[{start}:{stop}]",
                    tiles=item.tiles[start:stop],
                    cost=item.cost * (stop - start) / count,
                    matrix=item.matrix if item.matrix is not None else item.name,
                )
            )
    return groups


def pool_pages(budget_bytes: int, page_bytes: int) -> int:
    """Pages of `page_bytes` that fit into `budget_bytes`; 0 for a budget of 0.

    Raises:
      UserError: a negative budget, or one that is not 0 and smaller than one page.
    """
    if budget_bytes < 0:
        raise UserError(f"cache budget of {budget_bytes} bytes is negative: give 0 or more")
    if 0 < budget_bytes < page_bytes:
        raise UserError(
            f"cache budget of {budget_bytes} bytes is smaller than one page of {page_bytes} "
            f"bytes: give 0 for no cache or at least {page_bytes}"
        )
    return int(budget_bytes // page_bytes)


def budget_from_fraction(fraction: float, objects: Sequence[CacheObject], page_bytes: int) -> int:
    """Bytes of the whole pages that make up `fraction` of all the objects' tiles.

    Rounded down to whole pages, so that the fraction is never exceeded, after forgiving a
    millionth of a page: 20/155 of 155 equal objects is exactly the pages of 20 objects,
    although the quotient is not a binary fraction.

    Args:
      fraction: 0 (no cache) to 1 (room for every tile).

    Raises:
      UserError: a fraction outside 0..1, or above 0 and less than one page.
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"cache budget fraction {fraction} is outside 0..1: give a share")
    tiles = sum(len(item.tiles) for item in objects)
    pages = math.floor(fraction * tiles + 1e-6)
    if fraction > 0 and tiles and not pages:
        raise UserError(
            f"cache budget fraction {fraction} of {tiles} tiles is less than one page: "
            f"give 0 for no cache or at least {1 / tiles:.3g}"
        )
    return pages * page_bytes
