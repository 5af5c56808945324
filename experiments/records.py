"""What a run leaves behind: one folder a point, in files that any tool can read.

    config.json        the point's configuration
    environment.json   versions, device, implementation of each op, commit, command, time
    steps.jsonl        one JSON line a model step
    summary.json       figures over the whole point; written last: its presence says "done"

Each file appears whole or not at all. JSON has no NaN and no infinity: `null` stands for a
figure that is not finite, or that was not measured.
"""

import contextlib
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codecjax.errors import UserError

FINISHED = "finished"
FAILED = "failed"


@dataclasses.dataclass(frozen=True)
class PointRecords:
    """All that is recorded of one point; each value is plain JSON data.

    Attributes:
      config: the point's configuration, nested.
      environment: see `experiments.environment.describe`.
      steps: one dictionary a model step, the prefill first.
      summary: figures over all steps; `status` is "finished" or "failed".
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    steps: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.summary.get("status") == FINISHED


def plain(value: Any) -> Any:
    """`value` as JSON data: tuples as lists, numpy numbers as Python's, non-finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a record: {value!r}")


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` so that the file is never seen half-written."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that the file is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON data in `path`; UserError if the file is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: delete it and run the point again") from error


def write_point(folder: Path, records: PointRecords) -> None:
    """Writes the four files of a point, the summary last."""
    # An older summary must not vouch for the newer files beside it.
    (folder / "summary.json").unlink(missing_ok=True)
    write_json(folder / "config.json", records.config)
    write_json(folder / "environment.json", records.environment)
    lines = (json.dumps(plain(step), allow_nan=False) for step in records.steps)
    write_text(folder / "steps.jsonl", "".join(f"{line}\n" for line in lines))
    write_json(folder / "summary.json", records.summary)


def read_point(folder: Path) -> PointRecords | None:
    """The records in `folder`, or None where no point was completed."""
    names = ("config.json", "environment.json", "steps.jsonl", "summary.json")
    if not all((folder / name).is_file() for name in names):
        return None
    try:
        steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    except ValueError as error:
        raise UserError(
            f"{folder / 'steps.jsonl'} is not valid JSON: delete it and run the point again"
        ) from error
    return PointRecords(
        config=read_json(folder / "config.json"),
        environment=read_json(folder / "environment.json"),
        steps=steps,
        summary=read_json(folder / "summary.json"),
    )


def same_config(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two points would run the same; how they are reported does not count."""

    def run_fields(config: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in plain(config).items() if key != "report"}

    return run_fields(one) == run_fields(other)
