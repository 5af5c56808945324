"""The model that all of these tests generate with, and how."""

import numpy as np

from codecjax.cache import Plan
from codecjax.generate import Generator
from codecjax.models.config import LlamaConfig
from codecjax.tiles import DECODE, fill_entry, page_bytes

# All matrices have one shape, so that little is compiled.
CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=128,
    intermediate_size=128,
    layers=1,
    heads=4,
    kv_heads=4,
    head_dim=32,
    context=48,
    rope_theta=100.0,
)
TILE = (64, 128)
PAGE = page_bytes(TILE)
# Of 16 tiles. One pool size for all tests: they share compiled steps.
POOL = 9
PROMPT = [5, 99, 17, 3, 64]


class RandomPlans:
    """Stands in for the controller: tiles come and go at random."""

    def __init__(self, tile_count, seed):
        self._random = np.random.default_rng(seed)
        self._page_of = {}
        self._tile_count = tile_count

    def plan(self):
        for tile in list(self._page_of):
            if self._random.random() < 0.4:
                del self._page_of[tile]
        table = np.full(self._tile_count, DECODE, np.int32)
        for tile, page in self._page_of.items():
            table[tile] = page
        hits = len(self._page_of)
        free = self._random.permutation([p for p in range(POOL) if p not in self._page_of.values()])
        absent = self._random.permutation(
            [tile for tile in range(self._tile_count) if tile not in self._page_of]
        )
        for tile, page in zip(
            absent, free[: self._random.integers(0, len(free) + 1)], strict=False
        ):
            table[tile] = fill_entry(int(page))
            self._page_of[int(tile)] = int(page)
        misses = self._tile_count - hits
        return Plan(table, True, hits, misses, 0, 0, 0.0, 0.0, misses, len(self._page_of))


def make(model, **arguments):
    arguments = {"max_tokens": CONFIG.context, "implementation": "xla", "pages": POOL, **arguments}
    return Generator(model, **arguments)


def bits(logits):
    return np.asarray(logits).view(np.uint32)
