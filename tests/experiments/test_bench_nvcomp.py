"""The process that measures nvCOMP: what becomes of its answer, and of its failure."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.errors import UserError
from experiments import bench_nvcomp

_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)

# Stands in for the process where there is no GPU: reads the file, answers in bytes of it.
_ANSWER = """
import json, sys, numpy
bits = numpy.load(sys.argv[1], allow_pickle=False)
print("said by a library")
both = [(3e-6, 5), (2e-6, bits.nbytes)]
print(json.dumps([dict(seconds=s, spread=0.1, bytes=b, rotated_bytes=2 * b, exact=True)
                  for s, b in both]))
"""


def test_the_fastest_setting_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_nvcomp, "_COMMAND", (sys.executable, "-c", _ANSWER))
    row = bench_nvcomp.decode_row("tiny", jnp.asarray(_BITS).view(jnp.bfloat16), {"copy": 1e-6})
    assert row.timing.seconds == 2e-6
    assert (row.bytes, row.rotated_bytes, row.exact) == (_BITS.nbytes, 2 * _BITS.nbytes, True)


def test_a_failure_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = (sys.executable, "-c", "raise RuntimeError('no device')")
    monkeypatch.setattr(bench_nvcomp, "_COMMAND", failing)
    with pytest.raises(UserError, match=r"nvCOMP cannot decode here: .*no device; leave out"):
        bench_nvcomp.trials(_BITS)
