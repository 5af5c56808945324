"""The README's table is what the records say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from codecjax.errors import UserError
from experiments import readme, readme_codecs, readme_rows
from experiments.bench_rows import Place, Row
from experiments.timing import Timing

UP = (14336, 4096)


def row(**fields: Any) -> dict[str, Any]:
    """A row of a record as the benchmark writes it."""
    values: dict[str, Any] = {
        "suite": "matmul",
        "op": "matmul",
        "spec": "llama_8b.up",
        "codec": "window",
        "width": 11,
        "shape": UP,
        "batch": 1,
        "implementation": "mosaic_gpu",
        "timing": Timing(25e-6, 0.01),
        "bytes": 85_000_000,
        "bf16_bytes": 2 * UP[0] * UP[1],
        "moved_bytes": 85_000_000,
        "baselines": {"cublas": 30e-6, "xla": 40e-6},
        "exact": True,
    }
    return Row(**(values | fields)).record(Place("NVIDIA H200", {}, "c0ffee", 4e12))


def write(folder: Path, suite: str, rows: list[dict[str, Any]], options: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = f"python -m experiments.bench --suite={suite}{options} --out=/tmp/x.json"
    content = {"environment": {"command": command}, "copy_bytes_per_second": 4e12, "rows": rows}
    (folder / f"bench_{suite}.json").write_text(json.dumps(content))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The sweeps of this repository and no benchmark."""
    for path in ("cpu/embedded_cache_sweep", "h100/tinyllama_cache_sweep"):
        shutil.copytree(readme.RECORDS / path, tmp_path / path)
    return tmp_path


def test_the_readme_is_what_the_records_say() -> None:
    assert readme.README.read_text() == readme.generated(), "run python -m experiments.readme"


def test_sweeps_alone_make_their_lines(records: Path) -> None:
    lines = list(readme_rows.lines(records))
    assert {line.record for line in lines} == {
        "cpu/embedded_cache_sweep",
        "h100/tinyllama_cache_sweep",
    }
    assert lines[0].measured == "bit-equal in 6 of 6 points"
    assert lines[0].command == "experiments/demo.sh"
    speed = next(line for line in lines if line.what.startswith("tokens per second"))
    assert speed.measured == "1,002"
    assert "812 by xla" in speed.beside
    assert speed.command == ("python -m experiments.run --config=configs/tinyllama_cache_sweep.py")


def test_an_h200_is_preferred_but_for_the_sweep(records: Path) -> None:
    write(records / "h100", "encode", [row(suite="encode", op="encode", batch=None)])
    write(records / "h200", "encode", [row(suite="encode", op="encode", batch=None)])
    found = {line.record for line in readme_rows.lines(records)}
    assert "h200/bench_encode.json" in found
    assert "h100/bench_encode.json" not in found
    assert "h100/tinyllama_cache_sweep" in found


def test_products(records: Path) -> None:
    rows = [
        row(codec="bf16", width=None),
        row(),
        row(batch=16, timing=Timing(40e-6, 0.01)),
        row(op="matmul_paged_half", over_interpolation=1.02),
    ]
    write(records / "h200", "matmul", rows, " --peers")
    product, half = (line for line in readme_rows.lines(records) if "bench" in line.record)
    assert "[14336, 4096]" in product.what
    assert "batch 1 / 16, H200" in product.what
    assert product.measured == "1.20x / 0.750x the speed of the fastest bf16; 25.0 us at batch 1"
    assert product.beside == "bf16: 30.0 us by cublas; 21.3 us to move its bytes"
    assert product.command == "python -m experiments.bench --suite=matmul --peers"
    assert half.beside == "1.02x the mean of none and all resident"


def test_decode_step_and_encode(records: Path) -> None:
    size = 2 * UP[0] * UP[1]
    decode = {"suite": "decode", "op": "decode", "batch": None, "moved_bytes": 2 * size}
    pages = decode | {"op": "decode_into_pages", "exact": False}
    step = {
        "suite": "step",
        "op": "step",
        "spec": "tinyllama",
        "timing": Timing(1e-3, 0.01),
        "baselines": {"bf16, xla": 1.2e-3, "bf16, mosaic_gpu": 1.1e-3},
        "moved_bytes": 2 * 10**9,
        "context": 512,
    }
    encode = {"suite": "encode", "op": "encode", "batch": None, "timing": Timing(5e-3, 0.01)}
    write(records / "h200", "decode", [row(**decode), row(**pages)])
    write(records / "h200", "step", [row(**step, codec="bf16"), row(**step)])
    write(records / "cpu", "encode", [row(**encode), row(**encode | {"width": 8})])
    lines = [line for line in readme_rows.lines(records) if "bench" in line.record]
    dense, paged, stepped, encoded = lines
    assert dense.measured == "4.70 TB/s of output, bit-equal"
    assert dense.beside == "2.00 TB/s if only bytes moved"
    assert "into pages" in paged.what
    assert paged.measured.endswith("NOT exact")
    assert "in `window` 11, batch" in stepped.what
    assert stepped.measured == "1,000 tokens/s, 1.10x, with 0.724x the weight bytes"
    assert stepped.beside == "bf16: 833 by xla, 909 by mosaic_gpu; 2,000 if only bytes moved"
    assert encoded.measured == "23.5 GB/s of input"
    assert encoded.record == "cpu/bench_encode.json"


def test_only_the_block_between_the_marks_changes() -> None:
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    changed = readme.updated(text, "new")
    assert changed == f"before\n{readme.BEGIN}\nnew\n{readme.END}\nafter\n"
    assert readme.updated(changed, "new") == changed
    for damaged in ("no marks", f"{readme.END}{readme.BEGIN}", text + text):
        with pytest.raises(UserError, match="put the two marks"):
            readme.updated(damaged, "new")


def test_an_earlier_record_fills_in_what_a_later_one_has_not(records: Path) -> None:
    write(records / "h200", "decode", [row(suite="decode", op="decode", batch=None)])
    later = list(readme_rows.lines(records))
    write(
        records / "h200",
        "decode_earlier",
        [
            row(suite="decode", op="decode", batch=None, timing=Timing(1.0, 0.0)),
            row(suite="decode", op="decode", batch=None, codec="dfloat11", width=None),
        ],
    )
    added = [line for line in readme_rows.lines(records) if line not in later]
    assert [line.record for line in added] == ["h200/bench_decode_earlier.json"]
    assert "dfloat11" in added[0].what


def test_codecs_have_their_bits_and_what_comes_back() -> None:
    lines = list(readme_codecs.codec_lines(readme.RECORDS))
    by_name = {line.stored_as: line for line in lines}
    recorded = json.loads((readme.RECORDS / "cpu/quality.json").read_text())["rows"]
    for row in recorded:
        assert by_name[row["name"]].bits == row["bits_per_weight"]
        assert f"{row['perplexity']:.2f}" in by_name[row["name"]].result
    assert by_name["`rans`"].result == "every bit"
    assert by_name["`rans`"].bits < 10.8
    assert len(readme_codecs.table(lines, "records").splitlines()) == len(lines) + 2
