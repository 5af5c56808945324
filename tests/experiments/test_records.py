"""Records: plain JSON, whole files, and what counts as the same run."""

import json
from pathlib import Path

import numpy as np
import pytest

from codecjax.errors import UserError
from experiments import records
from experiments.records import PointRecords


def test_plain_makes_json_of_numpy_and_of_what_is_not_finite() -> None:
    value = {1: (np.int32(3), np.float32(0.5), float("nan")), "path": Path("a/b"), "none": None}
    plain = records.plain(value)
    assert plain == {"1": [3, 0.5, None], "path": "a/b", "none": None}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    with pytest.raises(TypeError, match="object has no place"):
        records.plain(object())


def test_a_point_is_read_back(tmp_path: Path) -> None:
    written = PointRecords({"a": {"b": 1}}, {"jax": "x"}, [{"step": 0}, {"step": 1}], {"name": "p"})
    records.write_point(tmp_path / "point", written)
    assert records.read_point(tmp_path / "point") == written
    assert {path.name for path in (tmp_path / "point").iterdir()} == {
        "config.json",
        "environment.json",
        "steps.jsonl",
        "summary.json",
    }


def test_a_point_without_its_summary_is_not_done(tmp_path: Path) -> None:
    records.write_point(tmp_path, PointRecords({}, {}, [], {"status": "finished"}))
    (tmp_path / "summary.json").unlink()
    assert records.read_point(tmp_path) is None


def test_an_interrupted_rewrite_leaves_no_old_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = PointRecords({}, {}, [{"step": 0}], {"status": "finished"})
    records.write_point(tmp_path, point)

    def interrupted(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        records.write_point(tmp_path, point)
    assert records.read_point(tmp_path) is None


def test_a_failing_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    records.write_text(file, "old")

    def full(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        records.write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_damaged_json_is_named(tmp_path: Path) -> None:
    records.write_point(tmp_path, PointRecords({}, {}, [], {"status": "finished"}))
    (tmp_path / "steps.jsonl").write_text('{"step": 0')
    with pytest.raises(UserError, match=r"steps\.jsonl is not valid JSON: delete it"):
        records.read_point(tmp_path)
    (tmp_path / "steps.jsonl").write_text("")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is not valid JSON"):
        records.read_point(tmp_path)


def test_how_a_point_is_reported_does_not_change_what_it_runs() -> None:
    one = {"codec": {"width": 11}, "report": {"title": "a"}}
    assert records.same_config(one, {"codec": {"width": 11}, "report": {"title": "b"}})
    assert not records.same_config(one, {"codec": {"width": 8}, "report": {"title": "a"}})
