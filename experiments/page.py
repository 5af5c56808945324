"""Builds `report.html` from a sweep's records: one file that needs nothing else."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments import formats, plots
from experiments.findings import findings
from experiments.original_notes import original_notes
from experiments.records import PointRecords, write_bytes, write_text
from experiments.report_text import CAPTIONS, GLOSSARY, STYLE
from experiments.sweep import SweepRecords
from experiments.tables import ReportTable, report_tables


def write_report(workdir: Path, sweep: SweepRecords) -> Path:
    """Draws the plots into `workdir/plots` and writes `workdir/report.html`; returns its path."""
    pictures = plots.draw([records for _, records in sweep.points])
    for name, png in pictures.items():
        write_bytes(workdir / "plots" / f"{name}.png", png)
    path = workdir / "report.html"
    write_text(path, report_html(sweep, pictures))
    return path


def report_html(sweep: SweepRecords, pictures: dict[str, bytes]) -> str:
    """The page; `pictures` are PNG files by name."""
    points = [records for _, records in sweep.points]
    finished = [records for records in points if records.finished]
    failed = [records for records in points if not records.finished]
    sections = [
        f"<h1>{_text(sweep.title)}</h1>",
        f'<p class="lead">{_text(sweep.about)}</p>' if sweep.about else "",
        _what_was_run(finished),
        _findings(finished, failed),
        _failures(failed),
        _notes(finished) if sweep.original_notes else "",
        *(_figure(name, png) for name, png in pictures.items()),
        *(_table(table, finished) for table in report_tables(points) if finished),
        _samples(finished),
        _glossary(),
        _reproduce(sweep, points),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(sweep.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _paragraph(text: str) -> str:
    return f"<p>{_text(text)}</p>"


def _rows(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    text_columns: set[int],
    text_class: str = "text",
) -> str:
    """A table of escaped cells; columns whose heading is "optimum" or a bound stand back."""

    def cell(tag: str, index: int, content: str) -> str:
        classes = []
        if index in text_columns:
            classes.append(text_class)
        if header[index].startswith(("optimum", "bound")):
            classes.append("optimum")
        if content == formats.yes_no(False):
            classes.append("wrong")
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        return f"<{tag}{attribute}>{_text(content)}</{tag}>"

    head = "".join(cell("th", index, heading) for index, heading in enumerate(header))
    body = "\n".join(
        "<tr>" + "".join(cell("td", index, content) for index, content in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _table(table: ReportTable, finished: Sequence[PointRecords]) -> str:
    rows = [[column.show(point.summary) for column in table.columns] for point in finished]
    text_columns = {index for index, column in enumerate(table.columns) if column.text}
    grid = _rows([column.heading for column in table.columns], rows, text_columns)
    return f"<h2>{_text(table.title)}</h2>\n{_paragraph(table.lead)}\n{grid}"


def _what_was_run(finished: Sequence[PointRecords]) -> str:
    if not finished:
        return ""
    summary = finished[0].summary
    model, tokens = summary["model"], summary["tokens"]
    devices = sorted({point.summary["device"] for point in finished})
    return _paragraph(
        f"Model: {model['name']}, {model['parameters']:,} weights in {model['matrices']} matrices "
        f"of {model['layers']} layers. Each point reads a prompt of {tokens['prompt']} tokens and "
        f"generates {tokens['generated']}, one at a time (batch 1, greedy). Device: "
        f"{', '.join(devices)}."
    )


def _findings(finished: Sequence[PointRecords], failed: Sequence[PointRecords]) -> str:
    items = findings(finished, failed)
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>"


def _failures(failed: Sequence[PointRecords]) -> str:
    if not failed:
        return ""
    items = "".join(
        f'<li><span class="wrong">{_text(point.summary["name"])}</span>: '
        f"{_text(point.summary['error'])}"
        f"<details><summary>traceback</summary><pre>{_text(point.summary['traceback'])}</pre>"
        "</details></li>"
        for point in failed
    )
    return f"<h2>Points that failed</h2>\n<ul>{items}</ul>"


def _notes(finished: Sequence[PointRecords]) -> str:
    lines = original_notes(finished)
    if not lines:
        return ""
    header = ("question", "noted", "hoped", "measured here", "how to read it")
    rows = [
        (line.question, line.noted or formats.MISSING, line.hoped, line.measured, line.remark)
        for line in lines
    ]
    lead = (
        "This project began with notes on TinyLlama: what an early prototype took, and what was "
        "hoped for. Each line of them is answered here from the records of this sweep."
    )
    grid = _rows(header, rows, set(range(len(header))), "prose")
    return f"<h2>The original notes, line by line</h2>\n{_paragraph(lead)}\n{grid}"


def _figure(name: str, png: bytes) -> str:
    title, caption = CAPTIONS[name]
    data = base64.b64encode(png).decode("ascii")
    return (
        f"<h2>{_text(title)}</h2>\n<figure>"
        f'<img src="data:image/png;base64,{data}" alt="{_text(title)}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _samples(finished: Sequence[PointRecords]) -> str:
    texts = [point.summary["tokens"] for point in finished if point.summary["tokens"]["text"]]
    if not texts:
        return ""
    different = {(tokens["prompt_text"], tokens["text"]) for tokens in texts}
    lead = "The prompt and what the model wrote after it" + (
        ", the same at every point:" if len(different) == 1 else ":"
    )
    samples = "".join(
        f"<pre><strong>{_text(prompt)}</strong>{_text(text)}</pre>"
        for prompt, text in sorted(different)
    )
    return f"<h2>What it wrote</h2>\n{_paragraph(lead)}\n{samples}"


def _glossary() -> str:
    entries = "".join(
        f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>" for term, meaning in GLOSSARY
    )
    return f"<h2>Glossary</h2>\n<dl>{entries}</dl>"


def _reproduce(sweep: SweepRecords, points: Sequence[PointRecords]) -> str:
    environment = points[0].environment
    git = environment["git"]
    commit = "unknown"
    if git is not None:
        commit = git["commit"] + (" with uncommitted changes" if git["dirty"] else "")
    facts = [
        f"{key} {value}"
        for key, value in environment.items()
        if value is not None and key not in ("git", "command", "implementations", "device_count")
    ]
    return (
        "<h2>How to reproduce this</h2>\n"
        + _paragraph(f"Commit {commit}. The command that ran the sweep, from the repository:")
        + f"\n<pre>{_text(sweep.command)}</pre>\n"
        + _paragraph(
            "This page again from its records, without running anything (FOLDER holds this file):"
        )
        + "\n<pre>python -m experiments.report --workdir=FOLDER</pre>\n"
        + _paragraph("Environment of the first point: " + ", ".join(facts) + ".")
        + _paragraph(
            "Beside this file: sweep.csv (every figure, one row a point), plots, and for each "
            "point a folder with config.json, environment.json, steps.jsonl and summary.json."
        )
    )
