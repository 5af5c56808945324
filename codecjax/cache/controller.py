"""The cache controller: turns a policy's decisions into pages, one plan per model step."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from codecjax.cache.objects import CacheObject
from codecjax.cache.policies import OFFLINE_POLICIES, make_policy, whole_number
from codecjax.cache.trace import cyclic_trace
from codecjax.errors import UserError
from codecjax.tiles import DECODE, fill_entry


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What one model step reads from pages, decodes and stores; sums are over its accesses.

    Attributes:
      page_table: int32[TILES], read-only; entries as in `codecjax.tiles.Residency`.
      changed: whether page_table differs from the previous plan's; if not it is the same array.
      hits, misses: objects.
      byte_hits, bytes: decoded bytes (whole pages) of the objects hit and of all accessed.
      cost_hits, cost: seconds that the hits save and that all accesses would cost if missed.
      tiles_expected: tiles that this step decodes: those of the missed objects.
      pages_held: pages in use after the step.
    """

    page_table: np.ndarray
    changed: bool
    hits: int
    misses: int
    byte_hits: int
    bytes: int
    cost_hits: float
    cost: float
    tiles_expected: int
    pages_held: int


@dataclasses.dataclass
class _Step:
    """What happened so far in the step being planned, by object number.

    Attributes:
      touched: objects whose table entries may have to change.
      hits: objects hit, as keys in order, which keeps sums of costs reproducible.
      stored: objects admitted in this step and not evicted again since.
      read_before_eviction: pages of objects that were hit and then evicted.
    """

    touched: set[int]
    hits: dict[int, None] = dataclasses.field(default_factory=dict)
    stored: set[int] = dataclasses.field(default_factory=set)
    read_before_eviction: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)


class Controller:
    """Owns the page table and the free pages; holds no device memory.

    Within a step objects are accessed in order and matrices run one after another. So a
    page that an earlier matrix has read may be filled by a later one in the same step: the
    evicted object keeps its page entries in this step's table. An object that is admitted
    and evicted within one step is decoded without being stored.

    Groups of one matrix (`split_objects`) run in one kernel call. A group is therefore never
    given a page that another group of its matrix reads in the same step: its admission is
    put off, and only then can the hits differ from `simulate`'s.
    """

    def __init__(
        self,
        policy: str,
        objects: Sequence[CacheObject],
        pages: int,
        page_bytes: int,
        tile_count: int,
        steps: int | None = None,
        *,
        accesses: Sequence[int] | None = None,
    ) -> None:
        """Starts with no page in use.

        Args:
          policy: one of `codecjax.cache.POLICIES`.
          objects: in the order in which a step accesses them. Empty ones are skipped.
          pages: P, pages of the pool.
          page_bytes: bytes of one page.
          tile_count: TILES of the model.
          steps: how many plans an offline policy will be asked for.
          accesses: instead of `steps`, all accesses of all steps where steps do not access
            all objects in order; offline policies and `pinned` use it.

        Raises:
          UserError: a bad number, a tile out of range or in two objects, an unknown policy,
            an offline policy that knows neither `steps` nor `accesses`.
        """
        self._pages = whole_number("number of cache pages", pages)
        if self._pages < 0:
            raise UserError(f"cannot plan for {pages} cache pages: give 0 or more")
        if whole_number("page size", page_bytes) < 1:
            raise UserError(f"a page of {page_bytes} bytes holds nothing: give 1 or more")
        _check_tiles(objects, tile_count)

        # Inside, objects are numbered without the empty ones.
        self._given = len(objects)
        occupied = [given for given, item in enumerate(objects) if len(item.tiles)]
        self._number = {given: number for number, given in enumerate(occupied)}
        self._objects = [objects[given] for given in occupied]
        self._rows = [_as_index(item.tiles) for item in self._objects]
        self._tiles = [len(item.tiles) for item in self._objects]
        self._costs = [item.cost for item in self._objects]
        self._page_bytes = page_bytes
        # Only matrices that are cut into several objects need care within a step.
        groups = Counter(item.matrix for item in self._objects)
        self._matrix = [item.matrix if groups[item.matrix] > 1 else None for item in self._objects]
        self._every_object = list(range(len(occupied)))
        self._check_matrices(self._every_object)

        future: list[int] | None = None
        if accesses is not None:
            future = self._numbers(accesses)
        elif steps is not None and policy in OFFLINE_POLICIES:
            future = cyclic_trace(len(occupied), steps).tolist()
        self._policy = make_policy(
            policy,
            [tiles * page_bytes for tiles in self._tiles],
            self._costs,
            self._pages * page_bytes,
            future,
        )

        self._held: dict[int, np.ndarray] = {}
        # A stack of which the first `_free_count` are free, the lowest page on top.
        self._free = np.arange(self._pages - 1, -1, -1, dtype=np.int32)
        self._free_count = self._pages
        self._table = np.full(tile_count, DECODE, dtype=np.int32)
        self._table.flags.writeable = False
        self._planned = False
        # Objects whose entries held only for the last step: stored, or evicted after a read.
        self._unsettled: set[int] = set()

    def plan(self, accessed: Sequence[int] | None = None) -> Plan:
        """Decides one step; call it once per step, in step order, prefill included.

        Args:
          accessed: indices into `objects` in order of access, each at most once and the
            groups of one matrix side by side; None: all of them.

        Raises:
          UserError: a bad `accessed`, or not what an offline policy was told.
        """
        if accessed is None:
            order = self._every_object
        else:
            order = self._numbers(accessed)
            if len(set(order)) != len(order):
                raise UserError("an object is accessed twice in one step: list each object once")
            self._check_matrices(order)

        step = _Step(touched=self._unsettled)
        matrix: str | None = None
        protected: set[int] = set()
        for number in order:
            if self._matrix[number] != matrix:
                matrix = self._matrix[number]
                protected = set()
            access = self._policy.access(number, protected)
            if access.hit:
                step.hits[number] = None
                if matrix is not None:
                    protected.add(number)
            elif access.admitted:
                for victim in access.evicted:
                    self._evict(victim, step)
                self._store(number, step)

        changed = self._rewrite(step)
        tiles_hit = sum(self._tiles[number] for number in step.hits)
        tiles = sum(self._tiles[number] for number in order)
        return Plan(
            page_table=self._table,
            changed=changed,
            hits=len(step.hits),
            misses=len(order) - len(step.hits),
            byte_hits=tiles_hit * self._page_bytes,
            bytes=tiles * self._page_bytes,
            cost_hits=sum(self._costs[number] for number in step.hits),
            cost=sum(self._costs[number] for number in order),
            tiles_expected=tiles - tiles_hit,
            pages_held=self._pages - self._free_count,
        )

    def _store(self, number: int, step: _Step) -> None:
        count = self._tiles[number]
        self._free_count -= count
        self._held[number] = self._free[self._free_count : self._free_count + count][::-1].copy()
        step.stored.add(number)
        step.touched.add(number)

    def _evict(self, number: int, step: _Step) -> None:
        pages = self._held.pop(number)
        self._free[self._free_count : self._free_count + len(pages)] = pages[::-1]
        self._free_count += len(pages)
        step.touched.add(number)
        if number in step.stored:
            step.stored.remove(number)
        elif number in step.hits:
            step.read_before_eviction[number] = pages

    def _rewrite(self, step: _Step) -> bool:
        """Puts the touched objects' entries into a new table; returns whether it differs."""
        first, self._planned = not self._planned, True
        self._unsettled = step.stored | step.read_before_eviction.keys()
        if not step.touched:
            return first
        table = self._table.copy()
        for number in step.touched:
            entries: np.ndarray | int
            if number in step.stored:
                # fill_entry of an array: it falls by one with every page.
                entries = fill_entry(0) - self._held[number]
            elif number in step.read_before_eviction:
                entries = step.read_before_eviction[number]
            elif number in self._held:
                entries = self._held[number]
            else:
                entries = DECODE
            table[self._rows[number]] = entries
        if np.array_equal(table, self._table):
            return first
        table.flags.writeable = False
        self._table = table
        return True

    def _numbers(self, given: Sequence[int]) -> list[int]:
        """Objects' own numbers for indices into the caller's list, empty objects left out."""
        for index in given:
            if not 0 <= index < self._given:
                raise UserError(
                    f"object {index} is accessed and there are {self._given} objects: "
                    f"indices run from 0 to {self._given - 1}"
                )
        return [self._number[index] for index in given if index in self._number]

    def _check_matrices(self, order: Sequence[int]) -> None:
        runs = [matrix for matrix, _ in itertools.groupby(self._matrix[i] for i in order)]
        for matrix, count in Counter(runs).items():
            if matrix is not None and count > 1:
                raise UserError(
                    f"the groups of matrix {matrix!r} are not side by side: "
                    "keep the groups of one matrix together in the order of access"
                )


def _as_index(tiles: np.ndarray) -> slice | np.ndarray:
    """A slice where the tiles are consecutive: much faster to write through."""
    first = int(tiles[0])
    if np.array_equal(tiles, np.arange(first, first + len(tiles))):
        return slice(first, first + len(tiles))
    return np.array(tiles, dtype=np.int32)


def _check_tiles(objects: Sequence[CacheObject], tile_count: int) -> None:
    named = np.zeros(tile_count, dtype=bool)
    for item in objects:
        tiles = np.asarray(item.tiles, dtype=np.int64)
        if len(tiles) and not (tiles.min() >= 0 and tiles.max() < tile_count):
            raise UserError(
                f"cache object {item.name!r} names tiles outside 0..{tile_count - 1}: "
                "give the model's tile numbers"
            )
        if len(np.unique(tiles)) != len(tiles) or named[tiles].any():
            raise UserError(
                f"a tile of cache object {item.name!r} is named twice: "
                "give each tile to one object only"
            )
        named[tiles] = True
