"""Writes the README's tables again, from the records.

python -m experiments.readme
"""

from collections.abc import Sequence
from pathlib import Path

from codecjax.errors import UserError
from experiments import cli, readme_codecs
from experiments.readme_rows import Line, lines
from experiments.records import write_text

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RECORDS = ROOT / "experiments" / "records"
BEGIN = "<!-- python -m experiments.readme writes from here -->"
END = "<!-- to here -->"
CODECS_BEGIN = "<!-- python -m experiments.readme writes the codecs from here -->"
CODECS_END = "<!-- the codecs to here -->"


def table(all_lines: Sequence[Line], records: str) -> str:
    """The lines as a Markdown table.

    Args:
      all_lines: of the table.
      records: the folder of all records, as the README sees it.
    """
    rows = ["| what | measured | bound or baseline | record and command |", "|---|---|---|---|"]
    rows += [
        f"| {line.what} | {line.measured} | {line.beside} "
        f"| [{line.record}]({records}/{line.record}), `{line.command}` |"
        for line in all_lines
    ]
    return "\n".join(rows)


def updated(readme: str, block: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """The README with this block between two marks.

    Raises:
      UserError: the marks are not there, once each and in order.
    """
    first, last = marks
    before, begin, rest = readme.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in after or last in before + after:
        raise UserError(
            f"README.md has no single block from {first!r} to {last!r}: put the two marks "
            "where the table shall be"
        )
    return f"{before}{first}\n{block}\n{last}{after}"


def generated() -> str:
    """The README as it should be."""
    folder = RECORDS.relative_to(ROOT).as_posix()
    measured = updated(README.read_text(), table(list(lines(RECORDS)), folder))
    codecs = readme_codecs.table(list(readme_codecs.codec_lines(RECORDS)), folder)
    return updated(measured, codecs, (CODECS_BEGIN, CODECS_END))


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: this program takes none")
    write_text(README, generated())
    print(f"wrote {README}")
    return 0


if __name__ == "__main__":
    cli.run(main)
