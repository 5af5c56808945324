"""The main job from end to end, on a model of eight matrices."""

import csv
import html
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments import run
from experiments.records import PointRecords, read_point

ROOT = Path(__file__).parents[2]
CONFIG = '''
"""A sweep for tests."""
from configs import base

def get_config():
    config = base.get_config()
    config.model.path = ""
    config.model.shapes = "tiny"
    config.codec.tile_rows = 64
    config.codec.tile_columns = 128
    config.codec.probability_bits = 10
    config.run.prompt = ""
    config.run.new_tokens = 6
    config.report.title = "A small sweep"
    return config

def get_sweep():
    return [
        {"name": "bf16", "codec.name": "bf16", "cache.budget_fraction": 0.0},
        {"name": "nothing", "cache.budget_fraction": 0.0},
        {"name": "half", "cache.budget_fraction": 0.5},
        {"name": "too little", "cache.budget_fraction": 0.5, "cache.policy": "all"},
        {"name": "half, lru", "cache.budget_fraction": 0.5, "cache.policy": "lru"},
        {"name": "half, by seconds", "cache.budget_fraction": 0.5, "cache.costs": "measured"},
        {"name": "half, rans", "cache.budget_fraction": 0.5, "codec.name": "rans"},
    ]
'''
FOLDERS = ("bf16", "nothing", "half", "too-little", "half-lru", "half-by-seconds", "half-rans")
TILES = 14


def start(config_file: Path, workdir: Path, report_only: bool = False, **overrides: Any) -> int:
    specification = importlib.util.spec_from_file_location("config", config_file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(overrides)
    return run.run(config_file, config, overrides, workdir, report_only)


class Job:
    """A finished run: its folder, exit status and what it printed."""

    def __init__(self, config_file: Path, workdir: Path, status: int, printed: str) -> None:
        self.config_file, self.workdir = config_file, workdir
        self.status, self.printed = status, printed

    def point(self, folder: str) -> PointRecords:
        records = read_point(self.workdir / "points" / folder)
        assert records is not None
        return records


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    config_file = folder / "small_sweep.py"
    config_file.write_text(CONFIG)
    # capsys has the scope of a function, so the module's only run is captured by hand.
    with pytest.MonkeyPatch.context() as patch:
        printed = folder / "printed"
        with printed.open("w") as stream:
            patch.setattr("sys.stdout", stream)
            status = start(config_file, folder / "records")
    return Job(config_file, folder / "records", status, printed.read_text())


def test_a_failing_point_is_recorded_and_the_others_are_done(job: Job) -> None:
    assert job.status == 1
    statuses = {folder: job.point(folder).summary["status"] for folder in FOLDERS}
    assert statuses == {
        folder: "failed" if folder == "too-little" else "finished" for folder in FOLDERS
    }
    assert "raise the budget" in job.point("too-little").summary["error"]
    assert "1 of 7 points failed" in job.printed


def test_every_point_is_bit_equal_to_bf16(job: Job) -> None:
    for folder in FOLDERS:
        if folder != "too-little":
            exact = job.point(folder).summary["exact"]
            assert exact["bit_equal"] is True
            assert exact["tokens_equal"] is True
            # Six steps, and one pass over 8 + 6 positions, of 128 logits each.
            assert exact["logits"] == (6 + 14) * 128


def test_steps_tell_of_hits_tiles_and_pages(job: Job) -> None:
    steps = job.point("half").steps
    assert [step["step"] for step in steps] == list(range(6))
    assert all(step["tiles_decoded"] == step["tiles_expected"] for step in steps)
    assert steps[0]["tiles_decoded"] == TILES
    assert steps[0]["hits"] == 0
    assert all(step["hits"] + step["misses"] == 8 for step in steps)
    assert {step["tiles_decoded"] for step in steps[1:]} == {TILES // 2}
    assert {step["pages_held"] for step in steps} == {TILES // 2}
    assert all(step["decode_seconds_per_tile"] > 0 for step in steps)
    assert all(step["tiles_decoded"] == TILES for step in job.point("half-lru").steps)


def test_rates_stand_beside_their_optimum(job: Job) -> None:
    pinned, lru = (job.point(folder).summary for folder in ("half", "half-lru"))
    # Half of all tiles in five of six steps.
    assert pinned["hits"]["byte"] == pytest.approx(0.5 * 5 / 6)
    assert pinned["bound"]["byte"] == pinned["hits"]["byte"]
    assert pinned["bound"]["object"] >= pinned["hits"]["object"]
    assert lru["hits"] == {"object": 0, "byte": 0, "cost": 0}
    assert lru["bound"] == pytest.approx(pinned["bound"], rel=1)
    measured = job.point("half-by-seconds").summary
    assert measured["cache"]["costs"] == "measured"
    assert measured["hits"]["cost"] <= measured["bound"]["cost"] + 1e-9


def test_bytes_and_times_add_up(job: Job) -> None:
    plain, half = (job.point(folder).summary for folder in ("bf16", "half"))
    page = 2 * 64 * 128
    assert half["bytes"]["pages"] == half["cache"]["budget_bytes"] == TILES // 2 * page
    assert half["bytes"]["total"] == sum(half["bytes"][part] for part in ("weights", "pages", "kv"))
    assert half["bytes"]["measured"] >= half["bytes"]["total"]
    assert plain["bytes"]["weights"] == plain["bytes"]["bf16_weights"]
    assert half["codec"]["bits_per_weight"] < 16 == plain["codec"]["bits_per_weight"]
    later = [step["seconds"] for step in job.point("half").steps[1:]]
    assert half["time"]["tokens_per_second"] == pytest.approx(5 / sum(later))
    # A step of the plain model reads its weights once, one row of the embedding among them.
    weights = plain["bytes"]["weights"] - 127 * 128 * 2
    kv = [2 * 2 * 32 * 4 * (8 + step) for step in range(1, 6)]
    expected = weights + sum(kv) / 5
    assert plain["bound"]["bytes_to_read_per_token"] == pytest.approx(expected)
    bound = expected / plain["bound"]["copy_bytes_per_second"]
    assert plain["bound"]["seconds_per_token"] == pytest.approx(bound)


def test_the_run_shows_its_progress_and_where_its_report_is(job: Job) -> None:
    assert re.search(
        r"\[half\] step 6/6: [\d.]+ ms, \d hits, \d misses, 7 tiles decoded, "
        r"[\d.e+]+ us/tile, pages 7/7",
        job.printed,
    )
    assert "[half] done: " in job.printed
    assert "Results" in job.printed
    for name in ("report.html", "sweep.csv", "plots", "points"):
        assert str(job.workdir / name) in job.printed
        assert (job.workdir / name).exists()


def test_the_table_and_the_page_have_every_point(job: Job) -> None:
    with (job.workdir / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [
        job.point(folder).summary["name"] for folder in FOLDERS
    ]
    page = (job.workdir / "report.html").read_text()
    assert "A small sweep" in page
    assert "6 of 6 checked points compute logits bit-equal" in page
    assert "too little" in page


def test_the_records_name_where_they_were_made(job: Job) -> None:
    environment = job.point("half").environment
    ops = ("matmul", "decode", "attention", "lookup")
    assert environment["implementations"] == dict.fromkeys(ops, "xla")
    assert environment["jax"]
    config = json.loads((job.workdir / "points" / "half" / "config.json").read_text())
    assert config["cache"]["budget_fraction"] == 0.5


def test_a_second_run_does_only_what_is_missing(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "records"
    shutil.copytree(job.workdir, workdir)
    (workdir / "points" / "nothing" / "summary.json").unlink()
    assert start(job.config_file, workdir, report_only=True) == 0
    with (workdir / "sweep.csv").open(newline="") as file:
        reported = [row["name"] for row in csv.DictReader(file)]
    assert reported == ["bf16", "half", "half, lru", "half, by seconds", "half, rans"]
    assert "step 6/6" not in capsys.readouterr().out
    assert start(job.config_file, workdir) == 1
    printed = capsys.readouterr().out
    for name in ("bf16", "half", "half, lru", "half, by seconds", "half, rans"):
        assert f"[{name}] done before, skipped" in printed
    assert "[nothing] step 6/6" in printed
    assert "[too little] FAILED" in printed
    assert read_point(workdir / "points" / "half") == job.point("half")
    assert (workdir / "report.html").exists()


def test_the_embedded_model_writes_python_and_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert start(ROOT / "configs" / "base.py", tmp_path, **{"run.new_tokens": 24}) == 0
    (folder,) = (tmp_path / "points").iterdir()
    records = read_point(folder)
    assert records is not None
    assert records.summary["exact"]["bit_equal"] is True
    assert 0 < records.summary["hits"]["byte"] == records.summary["bound"]["byte"]
    tokens = records.summary["tokens"]
    assert tokens["prompt_text"] == "def _check("
    assert "):" in tokens["text"]
    assert tokens["text"] in html.unescape((tmp_path / "report.html").read_text())


def test_a_lossy_point_is_no_failure_and_no_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file = tmp_path / "lossy.py"
    config_file.write_text(CONFIG.split("def get_sweep")[0])
    overrides = {"codec.name": "ecsq", "codec.bits_per_weight": 3.5, "cache.budget_fraction": 0.5}
    assert start(config_file, tmp_path / "out", **overrides) == 0
    (folder,) = (tmp_path / "out" / "points").iterdir()
    assert folder.name.startswith("ecsq-3.5")
    records = read_point(folder)
    assert records is not None
    summary = records.summary
    assert summary["codec"]["lossy"]
    assert summary["codec"]["bits_per_weight"] == pytest.approx(3.5, rel=0.02)
    assert summary["exact"]["bit_equal"] is False
    assert summary["tiles"]["as_planned"]
    report = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert "is lossy: codec ecsq stores other weights" in report
    assert "compute logits bit-equal" not in report
    assert "as the codec is lossy" in capsys.readouterr().out
