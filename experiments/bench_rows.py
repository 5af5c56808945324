"""One row of a benchmark's record: what was measured, against what, and where."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codecjax.tiles import TiledMatrix
from experiments import environment
from experiments.timing import Timing

DEVICE_COPY = "device copy"

# What a row's times may depend on; packages that are not installed are left out.
_PACKAGES = (
    *("jax", "jaxlib", "jax-cuda13-plugin", "numpy", "torch", "nvidia-cublas"),
    *("cupy-cuda13x", "nvidia-nvcomp-cu13", "dfloat11"),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where rows were measured.

    Attributes:
      device: its kind.
      versions: of the packages and the driver, by name.
      commit: of the code, with "-dirty" where files differ from it; None outside a checkout.
      bandwidth: bytes a second of a large copy, read plus written.
    """

    device: str
    versions: Mapping[str, str]
    commit: str | None
    bandwidth: float

    @classmethod
    def here(cls, bandwidth: float) -> "Place":
        versions = {name: environment.package_version(name) for name in _PACKAGES}
        versions["driver"] = environment.nvidia_driver()
        git = environment.git_state(Path(__file__).resolve().parent.parent)
        return cls(
            device=environment.device_name(),
            versions={name: version for name, version in versions.items() if version},
            commit=git["commit"] + ("-dirty" if git["dirty"] else "") if git else None,
            bandwidth=bandwidth,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement. `record` adds where it was made, and what follows from it.

    Attributes:
      suite: "decode", "matmul", "step" or "encode".
      op: within the suite.
      spec: name of the shape.
      codec, width: how the weights are stored; width is None where the codec has none, and names
        two where a model's matrices have them.
      shape: [OUT, K]; of a step those of the head, its largest matrix.
      batch: rows of x; None where nothing is multiplied.
      implementation: that ran.
      timing: seconds of one application, their spread and how they were taken.
      bytes: of the weights as stored.
      bf16_bytes: of the same weights in bf16.
      moved_bytes: that the application must at least read and write; None where bytes are not
        what bounds it.
      baselines: seconds of other ways to the same end, by name; the fastest is the baseline.
      exact: whether the result is right: bit-equal (of a lossy codec to what XLA decodes), or a
        product within rounding and bit-equal to that of the same kernel on that dense matrix.
        None where nothing says what is right: of XLA's own step, and of lossy encoding.
      relative_error: of a result that can't be exact, against float64 (a step: against XLA's).
      rotated_bytes: of all inputs that were taken in turn.
      host_share: see `timing.host_share`.
      computed_by: of a product: "fused", or "decode then dot".
      over_interpolation: with half of the tiles resident: the time over the mean of the times
        with none and with all.
      layers, context, kv_bytes: of a step.
    """

    suite: str
    op: str
    spec: str
    codec: str
    width: int | str | None
    shape: tuple[int, int]
    batch: int | None
    implementation: str
    timing: Timing
    bytes: int
    bf16_bytes: int
    moved_bytes: int | None
    baselines: Mapping[str, float]
    exact: bool | None
    relative_error: float | None = None
    rotated_bytes: int | None = None
    host_share: float | None = None
    computed_by: str | None = None
    over_interpolation: float | None = None
    layers: int | None = None
    context: int | None = None
    kv_bytes: int | None = None

    def record(self, place: Place) -> dict[str, Any]:
        """The row as JSON data, with the same keys for every row."""
        seconds = self.timing.seconds
        baseline = min(self.baselines, key=lambda name: self.baselines[name], default=None)
        baseline_seconds = None if baseline is None else self.baselines[baseline]
        floor = None if self.moved_bytes is None else self.moved_bytes / place.bandwidth
        return {
            "suite": self.suite,
            "op": self.op,
            "codec": self.codec,
            "width": self.width,
            "shape": list(self.shape),
            "batch": self.batch,
            "implementation": self.implementation,
            "seconds": seconds,
            "spread": self.timing.spread,
            "baseline": baseline,
            "baseline_seconds": baseline_seconds,
            "ratio": None if baseline_seconds is None else baseline_seconds / seconds,
            "bits_per_weight": 16 * self.bytes / self.bf16_bytes,
            "bytes": self.bytes,
            "exact": self.exact,
            "device": place.device,
            "versions": dict(place.versions),
            "commit": place.commit,
            "spec": self.spec,
            "method": self.timing.method,
            "baselines": dict(self.baselines),
            "relative_error": self.relative_error,
            "floor_seconds": floor,
            "fraction_of_copy_bandwidth": None if floor is None else floor / seconds,
            "moved_bytes": self.moved_bytes,
            "bf16_bytes_per_second": self.bf16_bytes / seconds,
            "fraction_of_bf16_bytes": self.bytes / self.bf16_bytes,
            "rotated_bytes": self.rotated_bytes,
            "host_share": self.host_share,
            "computed_by": self.computed_by,
            "over_interpolation": self.over_interpolation,
            "layers": self.layers,
            "context": self.context,
            "kv_bytes": self.kv_bytes,
        }


def of_matrix(t: TiledMatrix) -> dict[str, Any]:
    """The fields of a row that a tiled matrix gives."""
    return {
        "codec": t.codec,
        "width": t.options_dict.get("width"),
        "shape": t.shape,
        "bytes": t.nbytes,
        "bf16_bytes": 2 * math.prod(t.shape),
    }
