"""Tables, pictures and page of a report, from the records of points that never ran."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from experiments import plots
from experiments.original_notes import original_notes
from experiments.page import report_html, write_report
from experiments.records import PointRecords, write_point
from experiments.report_text import CAPTIONS
from experiments.sweep import SweepRecords, read_sweep, write_sweep
from experiments.tables import baseline_of, report_tables, speed_ratio, terminal_table

MakePoint = Callable[..., PointRecords]


@pytest.fixture
def points(make_point: MakePoint) -> list[PointRecords]:
    return [
        make_point("bf16", codec="bf16", seconds=0.008),
        make_point("nothing kept", held=0),
        make_point("20/155 kept", held=20),
        make_point("20/155 kept, lru", held=20, policy="lru"),
        make_point("85 % kept", held=134),
        make_point("broken", status="failed"),
        make_point("all kept", held=155),
    ]


def sweep_of(points: list[PointRecords], **fields: object) -> SweepRecords:
    values = {
        "name": "fake",
        "title": "A <title>",
        "about": "What & why.",
        "command": "python -m x",
    }
    folders = [(f"p{index}", point) for index, point in enumerate(points)]
    return SweepRecords(**{**values, "original_notes": False, "points": folders, **fields})  # type: ignore[arg-type]


def test_speed_is_compared_with_bf16_under_the_same_implementation(
    make_point: MakePoint, points: list[PointRecords]
) -> None:
    assert speed_ratio(points[1].summary, points) == pytest.approx(0.8)
    other = make_point("gpu").summary
    other["implementations"] = {"matmul": "mosaic_gpu", "decode": "mosaic_gpu"}
    assert baseline_of(other, points) is None
    assert speed_ratio(other, points) is None


def test_claims_are_made_against_the_fastest_bf16(
    make_point: MakePoint, points: list[PointRecords]
) -> None:
    headings = [column.heading for column in report_tables(points)[0].columns]
    assert "against fastest bf16" not in headings
    rival = make_point("bf16, gpu", codec="bf16", seconds=0.005)
    rival.summary["implementations"] = {"matmul": "mosaic_gpu", "decode": "mosaic_gpu"}
    points.append(rival)
    column = next(c for c in report_tables(points)[0].columns if c.heading.endswith("fastest bf16"))
    assert column.show(points[1].summary) == "0.500x"
    page = report_html(sweep_of(points), {})
    assert "runs at 0.500x the speed of the fastest bf16 point and its weights take 72.5 %" in page


def test_every_figure_that_is_wanted_has_a_column(points: list[PointRecords]) -> None:
    tables = report_tables(points)
    shown = {
        column.heading: column.show(points[2].summary)
        for table in tables
        for column in table.columns
    }
    expected = {
        "tokens/s": "100",
        "against bf16": "0.800x",
        "seconds per token": "10.0 ms",
        "bound: seconds per token": "3.33 ms",
        "first token": "200 ms",
        "decode time per tile": "2.00 us",
        "bits/weight": "11.60",
        "weights": "1.47 GB",
        "pages": "262 MB",
        "KV cache": "10.0 MB",
        "total": "1.75 GB",
        "object hits": "11.8 %",
        "byte hits": "11.8 %",
        "cost hits": "11.8 %",
        "optimum": "11.8 %",
        "bit-equal logits": "yes",
        "implementation": "xla (all ops)",
        "device": "fake device",
    }
    assert {heading: shown[heading] for heading in expected} == expected


def test_the_table_of_the_terminal_names_failed_points(points: list[PointRecords]) -> None:
    stream = io.StringIO()
    Console(file=stream, width=200).print(terminal_table(points))
    text = stream.getvalue()
    assert re.search(r"broken\s+│\s+failed", text)
    assert re.search(r"20/155 kept, lru\s+│\s+100\s+│\s+0\.800x", text)


def test_pictures_are_drawn_of_what_there_is(make_point: MakePoint) -> None:
    assert plots.draw([make_point("broken", status="failed")]) == {}
    assert set(plots.draw([make_point("bf16", codec="bf16")])) == {"device_bytes", "step_seconds"}
    pictures = plots.draw([make_point("one"), make_point("two", held=155, steps=1)])
    assert set(pictures) == set(CAPTIONS)
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())


def test_the_page_stands_alone_and_says_what_was_found(points: list[PointRecords]) -> None:
    page = report_html(sweep_of(points), plots.draw(points))
    assert "<title>A &lt;title&gt;</title>" in page
    assert "What &amp; why." in page
    assert len(re.findall('src="data:image/png;base64,', page)) == len(CAPTIONS)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "6 of 6 checked points compute logits bit-equal to plain bf16" in page
    assert "Below the offline optimum of the cost hit rate: 20/155 kept, lru." in page
    assert "1 of 7 points failed" in page
    assert "out of &lt;memory&gt;" in page
    assert "f(&lt;x&gt;):" in page
    assert "0123456789abcdef" in page
    assert "The original notes" not in page


def test_matrices_left_in_bf16_are_counted(points: list[PointRecords]) -> None:
    assert "which it would expand" not in report_html(sweep_of(points), {})
    points[1].summary["codec"]["compressed_matrices"] = 111
    page = report_html(sweep_of(points), {})
    assert "44 of 155 matrices, which it would expand, stay in bf16" in page


def test_the_reference_is_not_taken_for_the_kernels(points: list[PointRecords]) -> None:
    warning = "how fast the kernels are is measured on a GPU"
    assert warning in report_html(sweep_of(points), {})
    points[1].summary["implementations"] = {"matmul": "mosaic_gpu", "decode": "mosaic_gpu"}
    assert warning not in report_html(sweep_of(points), {})


def test_a_point_that_is_not_exact_stands_out(points: list[PointRecords]) -> None:
    points[1].summary["exact"]["bit_equal"] = False
    page = report_html(sweep_of(points), {})
    assert '<td class="wrong">NO</td>' in page
    assert "5 of 6 checked points compute" in page


def test_a_lossy_point_is_not_exact_and_no_mistake(points: list[PointRecords]) -> None:
    points[1].summary["codec"].update(name="int8_rans", lossy=True)
    points[1].summary["exact"].update(
        bit_equal=False, tokens_equal=False, max_abs_difference=0.5, divergence=0.0123
    )
    page = report_html(sweep_of(points), {})
    assert 'class="wrong">NO' not in page
    assert "<td>lossy</td>" in page
    assert "<td>0.0123</td>" in page
    assert "5 of 5 checked points compute" in page
    assert "nothing kept is lossy" in page
    assert "diverge from those of bf16 by 0.0123 nats a token, and it chooses other" in page
    stream = io.StringIO()
    Console(file=stream, width=200).print(terminal_table(points))
    assert re.search(r"nothing kept .* lossy", stream.getvalue())


def test_tiles_decoded_against_the_plan_stand_out(points: list[PointRecords]) -> None:
    planned = "decoded exactly the tiles that its plan said"
    assert planned in report_html(sweep_of(points), {})
    points[1].summary["tiles"]["as_planned"] = False
    page = report_html(sweep_of(points), {})
    assert planned not in page
    assert "did not decode the tiles that their plans said: nothing kept" in page


def test_the_original_notes_are_answered_line_by_line(points: list[PointRecords]) -> None:
    lines = {line.question: line for line in original_notes(points)}
    tile = lines["Time to decode one tile"]
    assert (tile.noted, tile.hoped, tile.measured) == ("295 ms", "1 to 5 ms", "2.00 us")
    rate = lines["Hit rate with 20 of 155 matrices decoded, after the first step"]
    assert rate.hoped == "85.0 %"
    assert rate.measured == "12.9 % of bytes (pinned); 0.0 % (lru)"
    assert "12.9 % where a miss may stay out" in rate.remark
    assert "0.0 % with LRU" in rate.remark
    budget = lines["Which budget gives 85.0 %"]
    assert budget.measured.startswith("86.5 % of the decoded weights, 1.76 GB")
    assert lines["Seconds per token"].measured == "10.0 ms"
    assert lines["5 tokens in total"].hoped == "35 s"
    assert lines["5 tokens in total"].measured == "240 ms"
    page = report_html(sweep_of(points, original_notes=True), {})
    assert "The original notes, line by line" in page


def test_the_report_is_made_again_from_its_records(
    points: list[PointRecords], tmp_path: Path
) -> None:
    sweep = sweep_of(points)
    for folder, point in sweep.points:
        write_point(tmp_path / "points" / folder, point)
    write_sweep(tmp_path, sweep)
    first = write_report(tmp_path, sweep).read_text()
    (tmp_path / "report.html").unlink()
    assert write_report(tmp_path, read_sweep(tmp_path)).read_text() == first
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == set(CAPTIONS)
