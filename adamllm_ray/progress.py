"""Progress of long work: a live bar on a terminal, one plain line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 60.0


class Task:
    """One piece of work. ``update(done)`` may be called as often as you like; it is cheap."""

    def __init__(self, label: str, total: int | None, bar: Progress | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._bar = bar
        self._id = bar.add_task(label, total=total, note="") if bar else None
        self._started = self._printed = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` units are done in all; ``note`` is a few words shown behind the bar."""
        self.done = done
        if self._bar is not None and self._id is not None:
            self._bar.update(self._id, completed=done, note=note)
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            self._line(note)

    def _line(self, note: str) -> None:
        total = f"/{self.total}" if self.total else ""
        seconds = time.monotonic() - self._started
        print(f"{self.label}: {self.done}{total} after {seconds:.0f} s {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def task(label: str, total: int | None = None) -> Iterator[Task]:
    """Show progress of one piece of work for the length of the block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        plain = Task(label, total, None)
        yield plain
        return
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as bar:
        yield Task(label, total, bar)
