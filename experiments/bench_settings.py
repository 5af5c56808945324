"""What every suite of the benchmark is told, and how it chooses among its shapes."""

import dataclasses
from collections.abc import Callable, Sequence

import jax

# Timings of which the median counts.
_REPEATS = {"gpu": 15, "cpu": 3}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      specs: names of the shapes; empty for the suite's own choice.
      batches: rows of x; empty for the suite's own choice.
      implementation: of the ops.
      peers: whether DFloat11 and nvCOMP are measured too.
      bandwidth: bytes a second of a large copy, read plus written.
      say: tells the user how far it is.
    """

    specs: tuple[str, ...]
    batches: tuple[int, ...]
    implementation: str
    peers: bool
    bandwidth: float
    say: Callable[[str], None]

    def chosen(self, default: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
        """Names of the shapes that a suite measures, given its own choice and all it knows."""
        if not self.specs:
            return tuple(default)
        return tuple(name for name in self.specs if name in known)


def backend() -> str:
    """What choices depend on: "gpu", or "cpu" for whatever else."""
    return "gpu" if jax.default_backend() == "gpu" else "cpu"


def repeats() -> int:
    return _REPEATS[backend()]
