"""The benchmark as a program: its records on a CPU, and its error sentences."""

import json
from pathlib import Path
from typing import Any

import pytest
from fork_commands import run_commands

SUITES = ("matmul", "decode", "step", "encode")
FIXED = {
    *("suite", "op", "codec", "width", "shape", "batch", "implementation", "seconds", "spread"),
    *("baseline", "baseline_seconds", "ratio", "bits_per_weight", "bytes", "exact", "device"),
    *("versions", "commit"),
}
ERRORS: dict[str, tuple[list[str], list[str]]] = {
    "no suite": ([], ["--suite is missing", "matmul"]),
    "unknown suite": (["--suite=speed"], ["unknown suite 'speed'", "decode"]),
    "unknown shape": (["--suite=decode", "--specs=nothing"], ["'nothing'", "llama_8b.up"]),
    "bad batch": (["--suite=matmul", "--batches=1,zero"], ["'zero'", "positive whole number"]),
    "one file for several": (["--suite=all", "--out=x.json"], ["--out", "leave it out"]),
    "no GPU": (["--suite=matmul"], ["mosaic_gpu", "cannot run here", "--implementation=xla"]),
    "no GPU for one of several": (["--suite=encode,step"], ["--implementation=xla"]),
    "no peers": (["--suite=encode", "--peers"], ["--peers needs", "codecjax[bench]"]),
    "nothing to tune": (["--suite=encode", "--tune"], ["--tune", "--suite=matmul,decode"]),
    "another suite's shape": (
        ["--suite=step,encode", "--implementation=xla", "--specs=odd.wide"],
        ["suite 'step' has none of the shapes odd.wide", "tinyllama"],
    ),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder in which the program ran, and what it said: first all suites, then errors."""
    folder = tmp_path_factory.mktemp("bench")
    everything = "--suite=all --implementation=xla --specs=embedded.largest,tiny --batches=1"
    cases = [everything.split(), *(case[0] for case in ERRORS.values())]
    return folder, run_commands("experiments.bench", cases, folder)


@pytest.fixture
def records(results: tuple[Path, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    folder, (done, *_) = results
    assert done["status"] == 0, done
    return {
        suite: json.loads((folder / "runs" / f"bench_{suite}.json").read_text()) for suite in SUITES
    }


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes_end_with_one_sentence(
    name: str, results: tuple[Path, list[dict[str, Any]]]
) -> None:
    result = results[1][1 + list(ERRORS).index(name)]
    assert result["status"] == 2, result
    sentence = result["stderr"].strip()
    assert sentence.startswith("error: ")
    assert "\n" not in sentence
    assert all(word in sentence for word in ERRORS[name][1]), sentence


def test_rows_have_the_same_keys_everywhere(records: dict[str, dict[str, Any]]) -> None:
    keys = {tuple(row) for record in records.values() for row in record["rows"]}
    assert len(keys) == 1
    assert set(keys.pop()) >= FIXED
    for suite, record in records.items():
        assert set(record) == {"environment", "copy_bytes_per_second", "rows"}
        for row in record["rows"]:
            assert row["suite"] == suite
            assert row["seconds"] > 0
            assert row["spread"] >= 0
            assert row["ratio"] == pytest.approx(row["baseline_seconds"] / row["seconds"])
            assert row["baseline_seconds"] == min(row["baselines"].values())
            assert row["versions"]["jax"] == record["environment"]["jax"]
            assert all(isinstance(size, int) for size in row["shape"])


def test_everything_that_was_measured_was_right(records: dict[str, dict[str, Any]]) -> None:
    rows = [row for record in records.values() for row in record["rows"]]
    # XLA's own step is what the others are compared with, and lossy codecs are not exact.
    unchecked = [row for row in rows if row["exact"] is None]
    assert [(row["op"], row["codec"]) for row in unchecked] == [
        ("step", "bf16"),
        ("encode", "int8_rans"),
        ("encode", "ecsq"),
    ]
    assert all(row["exact"] for row in rows if row["exact"] is not None)


def test_what_each_suite_measures(records: dict[str, dict[str, Any]]) -> None:
    measured = {
        suite: [(row["op"], row["codec"], row["width"]) for row in record["rows"]]
        for suite, record in records.items()
    }
    assert measured == {
        "matmul": [
            ("matmul", "bf16", None),
            *(("matmul", "window", width) for width in (11, 8, 16)),
            *(("matmul", codec, None) for codec in ("rans", "int8_rans", "ecsq")),
            *(
                (f"matmul_paged_{name}", codec, 11 if codec == "window" else None)
                for codec in ("window", "rans", "int8_rans", "ecsq")
                for name in ("none", "half", "all")
            ),
        ],
        "decode": [
            ("decode", "window", 11),
            *(("decode", codec, None) for codec in ("rans", "int8_rans", "ecsq")),
            *(("decode", "window", width) for width in (8, 16)),
            ("decode_into_pages", "window", 11),
            *(("decode_into_pages", codec, None) for codec in ("rans", "int8_rans", "ecsq")),
        ],
        "step": [
            ("step", "bf16", None),
            *(("step", "window", width) for width in (11, 8, "8 and 11")),
            ("step", "rans", None),
        ],
        "encode": [
            *(("encode", "window", width) for width in (11, 8, 16)),
            *(("encode", codec, None) for codec in ("rans", "int8_rans", "ecsq")),
        ],
    }
    half = records["matmul"]["rows"][-2]
    none, full = (records["matmul"]["rows"][place]["seconds"] for place in (-3, -1))
    assert half["over_interpolation"] == pytest.approx(2 * half["seconds"] / (none + full))
    assert {row["computed_by"] for row in records["matmul"]["rows"]} == {"decode then dot"}
    assert {row["method"] for row in records["encode"]["rows"]} == {"wall clock"}


def test_tables_and_pictures(results: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (done, *_) = results
    for suite in SUITES:
        assert f"Suite {suite}" in done["stdout"]
        assert f"record: runs/bench_{suite}.json" in done["stdout"]
        picture = (folder / "runs" / f"bench_{suite}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
