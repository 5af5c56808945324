"""Tuned settings of the kernels: one file a device kind, `tuning/<device>.json`.

    {"device": "NVIDIA H200", ...,
     "matmul": {"224x32": {"8": {"splits": 4, "stages": 2}, "16": ...}},
     "decode": {"224x32": {"steps": 8, "stages": 2}}}

A shape is "units down x units across", and a product also has a bucket of batches, the most rows
of x in it. `python -m experiments.bench --tune` measures and writes the file.

Settings belong to the shape alone and never to the codec: how a product is cut decides the order
of its sums, and a compressed matrix must give the bits that the same matrix in bf16 gives.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from codecjax.errors import UserError

FOLDER = Path(__file__).parent / "tuning"
DECODE, MATMUL = "decode", "matmul"
# The most rows of x in each bucket.
BATCHES = (8, 16, 32, 64, 128, 256)

Settings = Mapping[str, int]
# (op, shape, bucket): the bucket is None where nothing is multiplied.
Key = tuple[str, str, int | None]


def settings(
    op: str,
    units_down: int,
    units_across: int,
    batch: int | None,
    device_kind: str | None = None,
) -> Settings | None:
    """The settings that were fastest, or None: then the caller's heuristic has to do.

    Args:
      op: "matmul" or "decode".
      units_down, units_across: units of the matrix, or of all that share a launch.
      batch: rows of x; None for "decode".
      device_kind: None for the default device's.

    Returns:
      The fields of the kernel's config. None where the device has no file, the file has not
      this shape and bucket, or the batch is above every bucket.

    Raises:
      UserError: the device's file is damaged.
    """
    kind = jax.devices()[0].device_kind if device_kind is None else device_kind
    bucket = None if batch is None else bucket_of(batch)
    if batch is not None and bucket is None:
        return None
    return _read(file_of(kind)).get((op, shape_key(units_down, units_across), bucket))


def bucket_of(batch: int) -> int | None:
    """The bucket of so many rows of x; None above the last."""
    return next((most for most in BATCHES if most >= batch), None)


def shape_key(units_down: int, units_across: int) -> str:
    """A shape as the files name it."""
    return f"{units_down}x{units_across}"


def file_of(device_kind: str) -> Path:
    """Where the settings of a device kind are, if they are anywhere."""
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '_', device_kind.lower()).strip('_')}.json"


@functools.cache
def _read(path: Path) -> Mapping[Key, Settings]:
    """All settings in a file; none where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {_REMEDY}") from error
    return check(content, path)


_REMEDY = "delete it, or make it again with python -m experiments.bench --tune"


def check(content: Any, path: Path) -> Mapping[Key, Settings]:
    """All settings in the content of a file.

    Raises:
      UserError: something in it is not as it should be.
    """
    found: dict[Key, Settings] = {}
    for shape, buckets in _section(content, MATMUL, path).items():
        for bucket, fields in _mapping(buckets, f"{MATMUL} {shape}", path).items():
            if bucket not in map(str, BATCHES):
                raise UserError(
                    f"{path} has {MATMUL} {shape} for batches to {bucket!r}, "
                    f"which is none of {', '.join(map(str, BATCHES))}: {_REMEDY}"
                )
            key = (MATMUL, shape, int(bucket))
            found[key] = _fields(fields, f"{MATMUL} {shape} {bucket}", path)
    for shape, fields in _section(content, DECODE, path).items():
        found[DECODE, shape, None] = _fields(fields, f"{DECODE} {shape}", path)
    return MappingProxyType(found)


def _section(content: Any, op: str, path: Path) -> dict[str, Any]:
    section = _mapping(_mapping(content, "the whole file", path).get(op, {}), op, path)
    for shape in section:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", shape):
            raise UserError(f"{path} has {op} of {shape!r}, which is no shape: {_REMEDY}")
    return section


def _mapping(value: Any, what: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path} has {value!r} as {what}, which is no JSON object: {_REMEDY}")
    return value


def _fields(value: Any, what: str, path: Path) -> Settings:
    fields = _mapping(value, what, path)
    for name, number in fields.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise UserError(
                f"{path} has {name} {number!r} as {what}, which is no positive whole number: "
                f"{_REMEDY}"
            )
    if not fields:
        raise UserError(f"{path} has no settings as {what}: {_REMEDY}")
    return MappingProxyType(fields)
