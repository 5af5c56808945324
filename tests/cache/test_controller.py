"""The controller against a model of the kernels that keeps the content of every page."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codecjax.cache import POLICIES, CacheObject, Controller, Plan, simulate, split_objects
from codecjax.errors import UserError

PAGE = 1000


class Kernels:
    """Runs plans as the kernels would: matrix after matrix, the tiles of one at once."""

    def __init__(self, objects: Sequence[CacheObject], pages: int) -> None:
        self.objects = objects
        self.content: list[int | None] = [None] * pages

    def run(self, plan: Plan, accessed: Sequence[int]) -> list[bool]:
        """Checks every read; returns per access whether its tiles were decoded."""
        decoded = []
        calls = itertools.groupby(accessed, lambda i: self.objects[i].matrix or f"object {i}")
        for _, call in calls:
            reads, stores = set(), {}
            for index in call:
                entries = plan.page_table[self.objects[index].tiles].tolist()
                decoded.append(all(entry < 0 for entry in entries))
                assert decoded[-1] or all(entry >= 0 for entry in entries)
                for tile, entry in zip(self.objects[index].tiles.tolist(), entries, strict=True):
                    if entry >= 0:
                        assert self.content[entry] == tile
                        reads.add(entry)
                    elif entry != -1:
                        assert -(entry + 2) not in stores
                        stores[-(entry + 2)] = tile
            assert not reads & stores.keys()
            for page, tile in stores.items():
                self.content[page] = tile
        return decoded


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[CacheObject], int, int, list[list[int]]]:
    """(objects, tile count, pages, accesses of each step); tiles are scattered."""
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=7))
    unowned = draw(st.integers(0, 3))
    tiles = draw(st.permutations(range(sum(counts) + unowned)))
    bounds = np.cumsum([0, *counts])
    objects = [
        CacheObject(
            f"m{i}",
            np.array(tiles[bounds[i] : bounds[i + 1]], dtype=np.int32),
            draw(st.floats(-1, 5)),
        )
        for i in range(len(counts))
    ]
    everything = list(range(len(counts)))
    step = st.one_of(
        st.just(everything), st.lists(st.sampled_from(everything), unique=True, max_size=7)
    )
    steps = draw(st.lists(step, min_size=1, max_size=8))
    return objects, len(tiles), draw(st.integers(0, sum(counts) + 2)), steps


@given(cases(), st.sampled_from([p for p in POLICIES if p != "all"]))
@settings(max_examples=300, deadline=None)
def test_plans_follow_the_policy_and_never_read_a_wrong_page(
    case: tuple[list[CacheObject], int, int, list[list[int]]], policy: str
) -> None:
    objects, tile_count, pages, steps = case
    full = [i for i, item in enumerate(objects) if len(item.tiles)]
    sizes = [len(objects[i].tiles) * PAGE for i in full]
    costs = [objects[i].cost for i in full]
    ids = {index: i for i, index in enumerate(full)}
    trace = [ids[i] for step in steps for i in step if i in ids]
    movements = iter(simulate(policy, trace, sizes, costs, pages * PAGE).movements)

    controller = Controller(
        policy, objects, pages, PAGE, tile_count, accesses=[i for s in steps for i in s]
    )
    kernels = Kernels(objects, pages)
    resident: set[int] = set()
    kept_copies = []
    previous = None
    for step in steps:
        plan = controller.plan(step)
        table = plan.page_table
        accessed = [i for i in step if i in ids]
        decoded = kernels.run(plan, accessed)

        hits = []
        for index in accessed:
            movement = next(movements)
            hits.append(movement.hit)
            resident -= set(movement.evicted)
            if movement.admitted:
                resident.add(ids[index])
        # Hits equal the simulation's, and exactly the misses are decoded.
        assert decoded == [not hit for hit in hits]
        assert plan.hits == sum(hits)
        assert plan.misses == len(hits) - sum(hits)
        tiles = [len(objects[i].tiles) for i in accessed]
        assert plan.tiles_expected == sum(t for t, d in zip(tiles, decoded, strict=True) if d)
        assert plan.bytes == sum(tiles) * PAGE
        assert plan.byte_hits == plan.bytes - plan.tiles_expected * PAGE
        hit_costs = [objects[i].cost for i, hit in zip(accessed, hits, strict=True) if hit]
        assert plan.cost_hits == pytest.approx(sum(hit_costs))
        assert plan.cost == pytest.approx(sum(objects[i].cost for i in accessed))

        # What the simulation holds is in the pages, within the budget, each page once.
        held = [tile for i in resident for tile in objects[full[i]].tiles.tolist()]
        assert plan.pages_held == len(held) <= pages
        assert len({kernels.content.index(tile) for tile in held}) == len(held)
        # Only what stays is stored.
        for index in accessed:
            if ids[index] not in resident:
                assert (table[objects[index].tiles] >= -1).all()

        owned = {tile for item in objects for tile in item.tiles.tolist()}
        assert all(table[tile] == -1 for tile in range(tile_count) if tile not in owned)
        assert table.dtype == np.int32
        assert table.shape == (tile_count,)
        if previous is None:
            assert plan.changed
        else:
            assert plan.changed == (not np.array_equal(table, previous))
            assert plan.changed or table is previous
        previous = table
        kept_copies.append((table, table.copy()))
        with pytest.raises(ValueError, match="read-only"):
            table[...] = 0
    for table, copy in kept_copies:
        np.testing.assert_array_equal(table, copy)


@given(cases(), st.sampled_from(["pinned", "lru", "fifo", "lfu"]), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_groups_of_a_matrix_never_share_a_page_within_a_call(
    case: tuple[list[CacheObject], int, int, list[list[int]]], policy: str, tiles_per_object: int
) -> None:
    objects, tile_count, pages, steps = case
    groups = split_objects(objects, tiles_per_object)
    names = [item.name for item in objects]
    controller = Controller(policy, groups, pages, PAGE, tile_count)
    kernels = Kernels(groups, pages)
    for step in steps:
        accessed = [
            i
            for index in step
            for i, group in enumerate(groups)
            if (group.matrix or group.name) == names[index] and len(group.tiles)
        ]
        plan = controller.plan(accessed)
        decoded = kernels.run(plan, accessed)
        assert plan.misses == sum(decoded)
        assert plan.pages_held <= pages


def dense(*tiles: int) -> list[CacheObject]:
    starts = np.cumsum([0, *tiles])
    return [
        CacheObject(f"m{i}", np.arange(starts[i], starts[i + 1], dtype=np.int32), float(tiles[i]))
        for i in range(len(tiles))
    ]


@pytest.mark.parametrize(
    ("policy", "pages", "hits"),
    [
        ("lru", 40, 0),
        ("belady", 40, 950),
        ("pinned", 40, 980),
        ("min_bypass", 40, 980),
        ("none", 40, 0),
        ("all", 310, 7595),
    ],
)
def test_155_equal_layers(policy: str, pages: int, hits: int) -> None:
    controller = Controller(policy, dense(*[2] * 155), pages, PAGE, 310, steps=50)
    plans = [controller.plan() for _ in range(50)]
    assert sum(plan.hits for plan in plans) == hits
    assert sum(plan.tiles_expected for plan in plans) == 2 * (7750 - hits)


@pytest.mark.parametrize("policy", ["pinned", "all", "lru", "fifo", "lfu"])
def test_steady_state_gives_the_same_table(policy: str) -> None:
    controller = Controller(policy, dense(3, 2, 4), 9, PAGE, 9)
    first, second, third, fourth = (controller.plan() for _ in range(4))
    np.testing.assert_array_equal(first.page_table, -np.arange(2, 11))
    np.testing.assert_array_equal(second.page_table, np.arange(9))
    assert [plan.changed for plan in (first, second, third, fourth)] == [True, True, False, False]
    assert fourth.page_table is second.page_table
    assert (fourth.hits, fourth.misses, fourth.tiles_expected, fourth.pages_held) == (3, 0, 0, 9)


def test_an_object_evicted_after_its_hit_is_read_before_its_page_is_filled() -> None:
    controller = Controller("lru", dense(1, 1), 1, PAGE, 2)
    assert controller.plan([0]).page_table.tolist() == [-2, -1]
    assert controller.plan([0, 1]).page_table.tolist() == [0, -2]
    assert controller.plan([]).page_table.tolist() == [-1, 0]
    assert controller.plan([0, 1]).page_table.tolist() == [-1, -2]  # 0 is not stored in vain


def test_admission_into_a_page_that_the_same_call_reads_is_put_off() -> None:
    groups = split_objects(dense(2), 1)
    controller = Controller("lru", groups, 1, PAGE, 2)
    assert controller.plan([0]).page_table.tolist() == [-2, -1]
    assert controller.plan([0, 1]).page_table.tolist() == [0, -1]
    assert controller.plan([1]).page_table.tolist() == [-1, -2]


def test_pinned_uses_known_accesses() -> None:
    controller = Controller("pinned", dense(1, 1), 1, PAGE, 2, accesses=[0, 1, 1])
    assert [controller.plan(step).hits for step in ([0, 1], [1])] == [0, 1]


def build(**changes: object) -> Controller:
    arguments: dict = {
        "policy": "lru",
        "objects": dense(1, 2),
        "pages": 2,
        "page_bytes": PAGE,
        "tile_count": 3,
    }
    return Controller(**(arguments | changes))


TWICE = [*dense(1), CacheObject("again", np.array([0], dtype=np.int32), 1.0)]
APART = [
    CacheObject(f"g{i}", np.array([i], dtype=np.int32), 1.0, matrix="m" if i != 1 else None)
    for i in range(3)
]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": "mru"}, ["'mru'", "pinned, lru"]),
        ({"pages": -1}, ["-1", "0 or more"]),
        ({"pages": 1.5}, ["1.5", "integer"]),
        ({"page_bytes": 0}, ["page of 0 bytes"]),
        ({"policy": "belady"}, ["'belady'", "number of steps"]),
        ({"policy": "min_bypass"}, ["'min_bypass'", "number of steps"]),
        ({"policy": "all"}, ["3000 bytes", "2000"]),
        ({"tile_count": 2}, ["'m1'", "0..1"]),
        ({"objects": TWICE}, ["'again'", "twice"]),
        ({"objects": APART}, ["'m'", "side by side"]),
    ],
)
def test_bad_controllers(changes: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build(**changes)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("accessed", "words"), [([0, 2], ["object 2", "0 to 1"]), ([1, 1], ["twice"])]
)
def test_bad_accesses(accessed: list[int], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build().plan(accessed)
    assert all(word in str(error.value) for word in words)


def test_offline_policies_hold_the_caller_to_the_announced_accesses() -> None:
    controller = build(policy="belady", steps=2)
    controller.plan()
    with pytest.raises(UserError, match="access 2 is to object 1"):
        controller.plan([1])
    controller = build(policy="min_bypass", steps=1)
    controller.plan()
    with pytest.raises(UserError, match="the trace's end"):
        controller.plan()
