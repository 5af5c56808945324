"""How programs report mistakes; each case is a process of its own, as absl's flags are global."""

import subprocess
import sys

import pytest

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

cli.run(main)
"""


def start(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "status", "stderr"),
    [
        ([], 0, ""),
        (["failed"], 1, ""),
        (["warned"], 0, "warning: something was cast\n"),
        (["wrong"], 2, "error: the thing is wrong: mend it\n"),
        (["interrupted"], 130, "interrupted\n"),
    ],
)
def test_exit_status(arguments: list[str], status: int, stderr: str) -> None:
    done = start(*arguments)
    assert (done.returncode, done.stderr) == (status, stderr)


def test_verbose_shows_the_traceback() -> None:
    done = start("--verbose", "wrong")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: the thing is wrong: mend it\n")


def test_unknown_flags_are_named() -> None:
    done = start("--colour=red")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Unknown command line flag 'colour'")
    assert "Traceback" not in done.stderr


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
