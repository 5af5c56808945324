"""Folders that appear whole or not at all, whatever kills the process that writes them.

The new folder is written beside its destination under a hidden name, flushed to the disk, and
renamed into place. An old folder steps aside by a rename first and is deleted last, so between
those two renames, and only there, nothing is at the destination: `recover` puts the old folder
back.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from codecjax.errors import UserError

_WRITING, _RETIRED = "writing", "retired"


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder to fill, which replaces the folder `path` on leaving the block.

    If the block raises, `path` is as it was. Leftovers of killed processes are removed.

    Raises:
      UserError: the folder cannot be created, or something at `path` is no folder.
    """
    target = Path(os.path.abspath(path))
    if target.exists() and not target.is_dir():
        raise UserError(f"{path} exists and is not a folder: choose another path")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        _remove_leftovers(target)
        writing = _sibling(target, _WRITING)
        writing.mkdir()
        # The lock tells other processes that this folder is no leftover; a kill releases it.
        with _locked(writing):
            try:
                yield writing
                _flush(writing)
                _swap(writing, target)
            finally:
                shutil.rmtree(writing, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"folder {path} cannot be written ({error.strerror or error}): "
            "make room or choose another path"
        ) from error


def recover(path: str | os.PathLike[str]) -> None:
    """Puts back the old folder where a kill fell between the two renames of a replacement."""
    target = Path(os.path.abspath(path))
    if target.exists() or any(_is_live(each) for each in _siblings(target, _WRITING)):
        return
    for retired in _siblings(target, _RETIRED):
        retired.rename(target)
        return


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_live(writing: Path) -> bool:
    """Whether a process is writing the folder now."""
    try:
        with _locked(writing):
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


def _sibling(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.{role}-{uuid.uuid4().hex}")


def _siblings(target: Path, role: str) -> list[Path]:
    if not target.parent.is_dir():
        return []
    prefix = f".{target.name}.{role}-"
    return sorted(each for each in target.parent.iterdir() if each.name.startswith(prefix))


def _remove_leftovers(target: Path) -> None:
    for writing in _siblings(target, _WRITING):
        if not _is_live(writing):
            shutil.rmtree(writing, ignore_errors=True)
    if target.exists():
        for retired in _siblings(target, _RETIRED):
            shutil.rmtree(retired, ignore_errors=True)


def _flush(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(writing: Path, target: Path) -> None:
    if target.exists():
        retired = _sibling(target, _RETIRED)
        target.rename(retired)
        writing.rename(target)
        _sync(target.parent)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        writing.rename(target)
        _sync(target.parent)
