"""Progress of long work: a live bar on a terminal, one plain line a minute in a log, gauges on Ray's endpoint."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adamllm_ray import gauges

PLAIN_INTERVAL_S = 60.0


class Task:
    """One piece of work. ``update(done)`` may be called as often as you like; it is cheap."""

    def __init__(self, label: str, total: int | None, bar: Progress | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._bar = bar
        self._id = bar.add_task(label, total=total, note="") if bar else None
        self._started = self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first units were done, and how many those were
        self._note = ""

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` units are done in all; ``note`` is a few words shown behind the bar."""
        gauges.show_progress(self.label, done, self.total)
        if self._first is None and done:
            self._first = time.monotonic(), done
        self.done, self._note = done, note
        if self._bar is not None and self._id is not None:
            words = [f"{self.rate:.3g}/s"] if self.rate else []
            self._bar.update(self._id, completed=done, note=", ".join([*words, *([note] if note else [])]))
        else:
            self.tell()

    def tell(self) -> None:
        """Print a plain line, unless the last one is less than a minute old."""
        if time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            self._line(self._note)

    @property
    def rate(self) -> float | None:
        """Units per second since the first ones were done, so that a start of minutes does not count."""
        if self._first is None:
            return None
        moment, before = self._first
        seconds = time.monotonic() - moment
        return (self.done - before) / seconds if seconds > 0 and self.done > before else None

    def _line(self, note: str) -> None:
        total = f"/{self.total}" if self.total else ""
        parts = [f"{self.label}: {self.done}{total} after {time.monotonic() - self._started:.0f} s"]
        if self.rate:
            parts.append(f"{self.rate:.3g}/s")
            if self.total:
                parts.append(f"{(self.total - self.done) / self.rate:.0f} s left")
        print(", ".join([*parts, *([note] if note else [])]), file=sys.stderr, flush=True)


@contextmanager
def task(label: str, total: int | None = None) -> Iterator[Task]:
    """Show progress of one piece of work for the length of the block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        plain = Task(label, total, None)
        with _told_regularly(plain):
            yield plain
        return
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as bar:
        yield Task(label, total, bar)


@contextmanager
def _told_regularly(plain: Task) -> Iterator[None]:
    """A line a minute also while nothing moves: whoever reads a log sees that somebody is there."""
    stop = threading.Event()

    def tell() -> None:
        while not stop.wait(max(1.0, PLAIN_INTERVAL_S / 10)):
            plain.tell()

    thread = threading.Thread(target=tell, name="progress lines", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
