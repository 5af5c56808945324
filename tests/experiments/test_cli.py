"""How programs report mistakes; each case is a process of its own, as absl's flags are global."""

from pathlib import Path

import pytest
from fork_commands import run_commands

from experiments.cli import one_sentence

PROGRAM = """
import warnings
from codecjax.errors import UserError
from experiments import cli

def main(argv):
    if argv[1:] == ["wrong"]:
        raise UserError("the thing is wrong:\\n mend it")
    if argv[1:] == ["warned"]:
        warnings.warn("something\\n was cast")
    if argv[1:] == ["interrupted"]:
        raise KeyboardInterrupt
    return 1 if argv[1:] == ["failed"] else None

if __name__ == "__main__":
    cli.run(main)
"""


CASES: list[tuple[list[str], int, str]] = [
    ([], 0, ""),
    (["failed"], 1, ""),
    (["warned"], 0, "warning: something was cast\n"),
    (["wrong"], 2, "error: the thing is wrong: mend it\n"),
    (["interrupted"], 130, "interrupted\n"),
]


def test_exit_status_verbosity_and_unknown_flags(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = [case[0] for case in CASES]
    *results, verbose, unknown = run_commands(
        "program", [*arguments, ["--verbose", "wrong"], ["--colour=red"]], tmp_path
    )
    assert [(each["status"], each["stderr"]) for each in results] == [case[1:] for case in CASES]
    assert verbose["status"] == 2
    assert "Traceback" in verbose["stderr"]
    assert verbose["stderr"].endswith("error: the thing is wrong: mend it\n")
    assert unknown["status"] == 2
    assert unknown["stderr"].startswith("error: Unknown command line flag 'colour'")
    assert "Traceback" not in unknown["stderr"]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("", "ValueError"),
        ("one\n  two\n\nthree", "one two three"),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'y'", "KeyError: 'y'"),
    ],
)
def test_one_sentence(message: str, sentence: str) -> None:
    assert one_sentence(ValueError(message)) == sentence
