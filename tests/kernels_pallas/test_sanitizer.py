"""compute-sanitizer finds nothing in the kernels: no bad access, race or barrier."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.kernels_pallas.sanitized import PROGRAMS

# These tests are run only where they are asked for, so without the tool they fail.
_TOOL = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cuda,cpu",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # The tool may crash where kernels are recorded and replayed.
    "XLA_FLAGS": "--xla_gpu_enable_command_buffer= --xla_gpu_autotune_level=0",
}
# Of races it tells in words of its own.
_NOTHING = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "(0 errors",
    "synccheck": "ERROR SUMMARY: 0 errors",
}


@pytest.mark.sanitizer
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("tool", _NOTHING)
def test_nothing_is_found(tool: str, program: str) -> None:
    command = [_TOOL, "--tool", tool, sys.executable, "-m", "tests.kernels_pallas.sanitized"]
    ran = subprocess.run(
        [*command, program], env=os.environ | _ENVIRONMENT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert _NOTHING[tool] in ran.stdout, ran.stdout
