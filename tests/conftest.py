"""What holds for every test file."""

import gc
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _compiled_code_goes_with_its_file() -> Iterator[None]:
    """A process may map 65,530 pieces of memory, and those of all files' code are more."""
    yield
    jax.clear_caches()
    gc.collect()
