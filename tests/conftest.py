"""What holds for every test file."""

import gc
import os
from collections.abc import Iterator

import jax
import pytest

# XLA's threads on a CPU. By default there are as many as cores, and a kernel in the interpreter
# never ends if its warpgroups wait for one another in all of them.
os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))

# Files whose programs run for longer than it takes to optimise them.
_OPTIMISED = ("codecs/test_ecsq.py", "codecs/test_int8_rans.py")


@pytest.fixture(autouse=True, scope="module")
def _compiled_code_is_of_its_file(request: pytest.FixtureRequest) -> Iterator[None]:
    """A process may map 65,530 pieces of memory, and those of all files' code are more."""
    optimised = request.path.as_posix().endswith(_OPTIMISED)
    jax.config.update("jax_disable_most_optimizations", not optimised)
    yield
    jax.clear_caches()
    gc.collect()
