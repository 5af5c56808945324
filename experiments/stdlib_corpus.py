"""A corpus that every Python has: the sources of its standard library.

Modules are read in the order of their paths and split by name, so that one Python version
gives one corpus. Left out are tests, tables (`encodings`, `pydoc_data`) and whatever is not in
every installation.
"""

import dataclasses
import hashlib
import sys
import sysconfig
import tokenize
from pathlib import Path

from codecjax.errors import UserError

VALIDATION = frozenset(
    {"calendar", "cmd", "configparser", "fileinput", "gettext", "glob", "pprint", "string"}
)
HELD_OUT = frozenset(
    {
        "bisect",
        "colorsys",
        "contextlib",
        "csv",
        "fractions",
        "getopt",
        "graphlib",
        "heapq",
        "queue",
        "sched",
        "shlex",
        "statistics",
        "textwrap",
    }
)
_LEFT_OUT = frozenset(
    {
        "__phello__",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "test",
        "tests",
        "turtledemo",
    }
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Source texts by path relative to the library, sorted by path.

    Attributes:
      train: what the model learns from.
      validation: what chooses among the states of a training run.
      held_out: what the finished model is judged by, and nothing else.
    """

    train: dict[str, str]
    validation: dict[str, str]
    held_out: dict[str, str]

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of all paths and texts."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.held_out):
            for name, text in part.items():
                digest.update(f"{name}\0{text}\0".encode())
        return digest.hexdigest()


def size(texts: dict[str, str]) -> int:
    """Bytes of the texts in UTF-8."""
    return sum(len(text.encode()) for text in texts.values())


def read_corpus(library: Path | None = None) -> Corpus:
    """Reads the standard library of the running Python.

    Args:
      library: another folder to read instead.

    Raises:
      UserError: a part of the split would be empty.
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    parts: dict[str, dict[str, str]] = {"train": {}, "validation": {}, "held_out": {}}
    for file in sorted(library.rglob("*.py"), key=lambda each: each.relative_to(library).parts):
        path = file.relative_to(library)
        module = path.parts[0].removesuffix(".py")
        if module not in sys.stdlib_module_names or not _LEFT_OUT.isdisjoint(path.parts):
            continue
        with tokenize.open(file) as opened:  # Honours the encoding a source declares.
            text = opened.read()
        if text.strip():
            parts[part_of(module)][path.as_posix()] = text
    for part, texts in parts.items():
        if not texts:
            raise UserError(f"{library} has no sources for {part}: use a complete Python")
    return Corpus(**parts)


def part_of(module: str) -> str:
    """The part of the corpus, by its attribute's name, to which a module belongs."""
    if module in HELD_OUT:
        return "held_out"
    return "validation" if module in VALIDATION else "train"
