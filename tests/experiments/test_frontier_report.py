"""Fronts of made-up rows, and the lines of a report that follow from them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from experiments import frontier_plots
from experiments.frontier_report import findings, report
from experiments.frontier_rows import Row, row_of, with_fronts
from experiments.quality import Quality
from experiments.records import PointRecords

RECORD: dict[str, Any] = {
    "config": {
        "report": {"title": "A title", "about": "About it."},
        "model": {"path": "a/folder"},
        "codec": {"tile_rows": 64, "tile_columns": 128},
        "run": {"new_tokens": 4},
    },
    "environment": {
        "implementations": {"matmul": "xla", "decode": "xla"},
        "git": {"commit": "0123abc", "dirty": True},
        "jax": "0.11.2",
        "device": "a device",
        "time_utc": "2026-01-01",
        "command": "python -m experiments.run",
    },
    "left_out": {"ecsq 4, 0 % kept": "implementation 'mosaic_gpu' has no kernel"},
    "failed": {"rans, 0 % kept": "out of memory"},
}


def row(codec: str, budget: float, bits: float, speed: float, perplexity: float) -> Row:
    lossy = codec.startswith("ecsq")
    return Row(
        name=f"{codec}, {100 * budget:g} % kept",
        codec=codec,
        family=codec.split()[0],
        lossy=lossy,
        budget_fraction=budget,
        stored_bits=bits,
        held_bits=bits + 16 * budget,
        tokens_per_second=speed,
        bit_equal=not lossy,
        perplexity=perplexity,
        divergence=0.5 / bits if lossy else 0.0,
        agreement=0.9,
        tokens=1000,
    )


@pytest.fixture
def rows() -> list[Row]:
    return with_fronts(
        [
            row("bf16", 0.0, 16.0, 100.0, 20.0),
            row("window 11", 0.0, 11.6, 40.0, 20.0),
            row("window 11", 1.0, 11.6, 80.0, 20.0),
            row("window 16", 0.0, 12.0, 40.0, 20.0),
            row("ecsq 6", 0.0, 6.0, 10.0, 19.9),
            row("ecsq 3", 0.0, 3.0, 10.0, 25.0),
        ]
    )


def test_fronts_of_rows(rows: list[Row]) -> None:
    assert {each.name: each.fronts for each in rows} == {
        "bf16, 0 % kept": ("speed", "memory"),
        "window 11, 0 % kept": ("memory", "divergence"),
        "window 11, 100 % kept": ("speed", "divergence"),
        "window 16, 0 % kept": (),
        "ecsq 6, 0 % kept": ("perplexity", "divergence"),
        "ecsq 3, 0 % kept": ("speed", "memory", "perplexity", "divergence"),
    }


def test_findings_say_what_is_on_fronts_and_what_is_missing(rows: list[Row]) -> None:
    said = findings(rows, RECORD)
    assert "4 of 4 points of lossless codecs compute logits bit-equal to bf16." in said
    assert any(
        text.startswith("2 of 2 other lossless codecs have the perplexity of bf16, 20.0000")
        for text in said
    )
    assert any("Lossy and yet below the perplexity of bf16: ecsq 6 (by 0.5 %)" in t for t in said)
    assert (
        "Front of stored bits against tokens/s: ecsq 3, 0 % kept; window 11, 100 % kept; "
        "bf16, 0 % kept." in said
    )
    assert "Front of stored bits against perplexity: ecsq 3; ecsq 6." in said
    assert "Left out: ecsq 4, 0 % kept: implementation 'mosaic_gpu' has no kernel." in said
    assert "Failed: rans, 0 % kept: out of memory." in said
    assert any(text.startswith("The XLA reference ran") for text in said)


def test_points_that_do_the_same_work_show_how_sure_speeds_are(rows: list[Row]) -> None:
    assert not any("may do so by chance" in text for text in findings(rows, RECORD))
    more = [*rows, row("ecsq 6", 1.0, 6.0, 160.0, 19.9)]
    (said,) = (text for text in findings(more, RECORD) if "may do so by chance" in text)
    assert "these 2 points made 80.0 to 160 tokens/s" in said
    assert "less than 2.00x" in said
    # Kernels read pages in ways of their own.
    where = {**RECORD["environment"], "implementations": {"matmul": "mosaic_gpu"}}
    (said,) = (
        text
        for text in findings(more, {**RECORD, "environment": where})
        if "each codec's own kernels read the pages" in text
    )
    assert "these 2 points made 80.0 to 160 tokens/s" in said
    assert "by chance" not in said


def test_a_lossless_codec_that_predicts_otherwise_is_seen(rows: list[Row]) -> None:
    rows[1:3] = [dataclasses.replace(each, bit_equal=False, divergence=1e-9) for each in rows[1:3]]
    said = " ".join(findings(rows, RECORD))
    assert "2 of 4 points of lossless codecs" in said
    assert "1 of 2 other lossless codecs" in said
    page = report(rows, RECORD)
    assert page.count("| NO |") == 2
    assert page.count("| lossy |") == 2


def test_the_page_has_a_line_for_every_row(rows: list[Row]) -> None:
    page = report(rows, RECORD)
    assert "| window 11, 0 % kept | 11.60 | 11.60 | 40.0 | yes | 20.0000 | 0 | 90.0 % " in page
    assert "| memory, divergence |" in page
    assert "![Fronts of bits against speed and quality](frontier.png)" in page
    assert "Commit 0123abc with uncommitted changes" in page


def test_without_quality_or_rows_nothing_is_made_up(rows: list[Row]) -> None:
    unmeasured = [
        dataclasses.replace(each, perplexity=None, divergence=None, agreement=None, tokens=None)
        for each in rows
    ]
    found = with_fronts(unmeasured)
    assert {front for each in found for front in each.fronts} == {"speed", "memory"}
    assert not any("erplexity" in text for text in findings(found, RECORD))
    page = report([], RECORD)
    assert "frontier.png" not in page
    assert "Failed: rans" in page


def test_pictures_have_a_panel_a_front(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    panels: list[str] = []
    draw_panel = frontier_plots._draw_panel

    def noted(axes: Any, name: str, of: Any) -> None:
        draw_panel(axes, name, of)
        panels.append(axes.get_title())

    monkeypatch.setattr(frontier_plots, "_draw_panel", noted)
    assert frontier_plots.draw(rows).startswith(b"\x89PNG")
    assert [title.rsplit(" ", 1)[-1] for title in panels] == [
        "tokens/s",
        "tokens/s",
        "perplexity",
        "divergence",
    ]


def test_a_row_of_a_record(make_point: Callable[..., PointRecords]) -> None:
    summary = make_point("half", held=0).summary
    summary["codec"]["lossy"] = False
    quality = Quality(20.0, 1.5, 0.25, 0.9, 1000)
    found = row_of("window 11", summary, quality)
    assert (found.codec, found.family, found.bit_equal) == ("window 11", "window", True)
    assert (found.perplexity, found.divergence, found.tokens) == (20.0, 0.25, 1000)
    assert found.held_bits == 8 * summary["bytes"]["weights"] / 10**9
    with_pages = make_point("half", held=20).summary
    with_pages["codec"]["lossy"] = False
    more = row_of("window 11", with_pages, None)
    assert more.held_bits - found.held_bits == pytest.approx(
        8 * with_pages["bytes"]["pages"] / 10**9
    )
    assert more.perplexity is None
