"""nvCOMP's ANS codec as a peer, through its Python package and CuPy.

It is measured while nothing else runs, but in a process of its own: beside PyTorch, which has been
loaded by then for cuBLAS and DFloat11, nvCOMP 6.0 takes no CuPy array and ends the process.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from codecjax.errors import UserError
from experiments.bench_matrices import applications
from experiments.bench_nvcomp_process import COPIES
from experiments.bench_rows import Row
from experiments.bench_settings import repeats
from experiments.timing import Timing

NAME = "nvcomp_ans"

_COMMAND = (sys.executable, "-m", "experiments.bench_nvcomp_process")
# Seconds after which the process is given up.
_PATIENCE = 300


def trials(bits: np.ndarray) -> list[dict[str, Any]]:
    """What `bench_nvcomp_process.measure` gives for bit patterns uint16[OUT, K].

    Raises:
      UserError: nvCOMP cannot run here.
    """
    # Compressed, they are two thirds.
    numbers = (applications(COPIES, 5 * bits.nbytes // 3), repeats())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bits.npy"
        np.save(file, bits, allow_pickle=False)
        try:
            done = subprocess.run(
                [*_COMMAND, str(file), *map(str, numbers)],
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"nvCOMP has not finished in {_PATIENCE} seconds: leave out --peers, "
                "the rows before it are in the record"
            ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(
            f"nvCOMP cannot decode here: {said[-1]}; leave out --peers, "
            "the rows before it are in the record"
        )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def decode_row(name: str, w: jax.Array, baselines: Mapping[str, float]) -> Row:
    """nvCOMP's dense decode of bf16[OUT, K], by the fastest of its settings."""
    fastest = min(trials(np.asarray(w).view(np.uint16)), key=lambda each: each["seconds"])
    out, k = w.shape
    return Row(
        suite="decode",
        op="decode",
        spec=name,
        codec=NAME,
        width=None,
        shape=(out, k),
        batch=None,
        implementation=NAME,
        timing=Timing(fastest["seconds"], fastest["spread"]),
        bytes=fastest["bytes"],
        bf16_bytes=2 * math.prod(w.shape),
        moved_bytes=fastest["bytes"] + w.nbytes,
        baselines=baselines,
        exact=fastest["exact"],
        rotated_bytes=fastest["rotated_bytes"],
    )
