"""What holds for every test file."""

import gc
import os
from collections.abc import Iterator

import jax
import pytest

# XLA's threads on a CPU. By default there are as many as cores, and a kernel in the interpreter
# never ends if its warpgroups wait for one another in all of them.
os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))

# Files whose programs take longer to optimise than to run.
_RUN_ONCE = (
    "codecs/test_rans_coder.py",
    "codecs/test_window.py",
    "generate/test_caller.py",
    "generate/test_exactness.py",
    "generate/test_work.py",
    "io/test_checkpoint.py",
    "kernels_pallas/test_interpreted_decode.py",
    "kernels_pallas/test_interpreted_matmul.py",
    "kernels_pallas/test_lowering.py",
    "kernels_pallas/test_ops.py",
    "models/test_fitting.py",
)


@pytest.fixture(autouse=True, scope="module")
def _compiled_code_is_of_its_file(request: pytest.FixtureRequest) -> Iterator[None]:
    """A process may map 65,530 pieces of memory, and those of all files' code are more."""
    hurried = request.path.as_posix().endswith(_RUN_ONCE)
    jax.config.update("jax_disable_most_optimizations", hurried)
    yield
    jax.clear_caches()
    gc.collect()
