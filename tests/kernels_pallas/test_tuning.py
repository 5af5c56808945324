"""Tuned settings: what is found in a device's file, and what a damaged one says."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from codecjax.errors import UserError
from kernels_pallas import tuning

KIND = "NVIDIA H100 80GB HBM3"
CONTENT: dict[str, Any] = {
    "device": KIND,
    "matmul": {"224x32": {"8": {"splits": 4, "stages": 2}, "64": {"splits": 1, "stages": 3}}},
    "decode": {"224x32": {"steps": 8, "stages": 2}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    tuning._read.cache_clear()
    return tmp_path


def test_a_file_is_named_after_the_device(folder: Path) -> None:
    assert tuning.file_of(KIND) == folder / "nvidia_h100_80gb_hbm3.json"
    assert tuning.file_of("NVIDIA  H200 (SXM)") == folder / "nvidia_h200_sxm.json"


def test_settings_are_found_by_shape_and_bucket() -> None:
    tuning.file_of(KIND).write_text(json.dumps(CONTENT))
    for batch in (1, 8):
        assert tuning.settings("matmul", 224, 32, batch, KIND) == {"splits": 4, "stages": 2}
    for batch in (33, 64):
        assert tuning.settings("matmul", 224, 32, batch, KIND) == {"splits": 1, "stages": 3}
    assert tuning.settings("decode", 224, 32, None, KIND) == {"steps": 8, "stages": 2}


@pytest.mark.parametrize(
    ("op", "down", "across", "batch", "kind"),
    [
        ("matmul", 224, 32, 1, "NVIDIA H200"),
        ("matmul", 32, 224, 1, KIND),
        ("matmul", 224, 32, 9, KIND),
        ("matmul", 224, 32, 257, KIND),
        ("decode", 224, 31, None, KIND),
    ],
    ids=["device", "shape", "bucket", "batch above all", "shape of decode"],
)
def test_what_is_missing_is_none(
    op: str, down: int, across: int, batch: int | None, kind: str
) -> None:
    tuning.file_of(KIND).write_text(json.dumps(CONTENT))
    assert tuning.settings(op, down, across, batch, kind) is None


def test_the_default_device_is_asked_for() -> None:
    assert tuning.settings("matmul", 224, 32, 1) is None
    tuning._read.cache_clear()
    tuning.file_of(jax.devices()[0].device_kind).write_text(json.dumps(CONTENT))
    assert tuning.settings("matmul", 224, 32, 1) == {"splits": 4, "stages": 2}


def test_a_file_is_read_once_and_its_settings_cannot_change() -> None:
    tuning.file_of(KIND).write_text(json.dumps(CONTENT))
    found: Any = tuning.settings("matmul", 224, 32, 1, KIND)
    tuning.file_of(KIND).unlink()
    assert tuning.settings("matmul", 224, 32, 1, KIND) == {"splits": 4, "stages": 2}
    with pytest.raises(TypeError):
        found["splits"] = 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[]", "the whole file"),
        ('{"matmul": 3}', "3 as matmul"),
        ('{"decode": {"224": {"steps": 8}}}', "decode of '224', which is no shape"),
        ('{"matmul": {"2x3": {"7": {"splits": 1}}}}', "batches to '7'"),
        ('{"matmul": {"2x3": {"8": {"splits": 0}}}}', "splits 0 as matmul 2x3 8"),
        ('{"decode": {"2x3": {"steps": true}}}', "steps True as decode 2x3"),
        ('{"decode": {"2x3": {"steps": "8"}}}', "steps '8' as decode 2x3"),
        ('{"decode": {"2x3": {}}}', "no settings as decode 2x3"),
    ],
)
def test_damage_is_told_with_the_remedy(text: str, words: str) -> None:
    tuning.file_of(KIND).write_text(text)
    with pytest.raises(UserError) as raised:
        tuning.settings("decode", 1, 1, None, KIND)
    assert words in str(raised.value)
    assert str(tuning.file_of(KIND)) in str(raised.value)
    assert "--tune" in str(raised.value)


def test_the_files_of_the_package_are_sound() -> None:
    for path in (Path(tuning.__file__).parent / "tuning").glob("*.json"):
        content = json.loads(path.read_text())
        tuning.check(content, path)
        assert tuning.file_of(content["device"]).name == path.name
