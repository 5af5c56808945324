"""What is seen while a run goes on: a bar per point, or plain lines where there is no terminal."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Seconds between two plain lines of one point.
_PLAIN_INTERVAL = 5.0
_PLAIN_WIDTH = 150


def make_console() -> Console:
    """The console of stdout, wide enough for tables where no terminal says how wide it is."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def step_line(step: Mapping[str, Any]) -> str:
    """One step in words: seconds, hits and misses, tiles decoded, time per tile, fullness."""
    per_tile = step["decode_seconds_per_tile"]
    return ", ".join(
        [
            f"{1e3 * step['seconds']:.2f} ms",
            f"{step['hits']} hits",
            f"{step['misses']} misses",
            f"{step['tiles_decoded']} tiles decoded",
            "no tile to decode" if per_tile is None else f"{1e6 * per_tile:.3g} us/tile",
            f"pages {step['pages_held']}/{step['pages']}",
        ]
    )


class RunProgress:
    """Shows points and their steps on `console`; use it as a context manager.

    On a terminal each point has a bar with its last step beside it. Elsewhere a line is
    printed at the first step, at the last, and every few seconds between them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = (
            Progress(
                TextColumn("{task.fields[name]}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[status]}"),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self._task: Any = None
        self._name = ""
        self._steps = 0
        self._done = 0
        self._printed = 0.0

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, name: str, steps: int) -> None:
        """A point of `steps` model steps starts."""
        self._name, self._steps, self._done, self._printed = name, steps, 0, 0.0
        if self._bars is not None:
            self._task = self._bars.add_task("", total=steps, name=name, status="")

    def note(self, text: str) -> None:
        """The point is busy with `text` before its steps."""
        if self._bars is not None:
            self._bars.update(self._task, status=text)
        else:
            self._print(text)

    def step(self, step: Mapping[str, Any]) -> None:
        """The point made one step; see `step_line` for the fields."""
        self._done += 1
        line = step_line(step)
        if self._bars is not None:
            self._bars.update(self._task, completed=self._done, status=line)
            return
        now = time.monotonic()
        ends = self._done in (1, self._steps)
        if ends or now - self._printed >= _PLAIN_INTERVAL:
            self._printed = now
            self._print(f"step {self._done}/{self._steps}: {line}")

    def end(self, text: str) -> None:
        """The point is over; `text` says how it went."""
        if self._bars is not None:
            self._bars.update(self._task, status=text)
        else:
            self._print(text)

    def say(self, text: str) -> None:
        """A line about the whole run."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _print(self, text: str) -> None:
        self.say(f"[{self._name}] {text}")
