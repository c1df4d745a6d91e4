"""How far a synthesis is, read off its folder: from the driver itself or from any other process, local or S3.

Ray's ledger has one small file per finished block, with the block's ids; the time of the file is when the block was
done. That gives rows, rate and the time left. Verdicts are one short column of the block's data file.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray import gauges, progress
from adamllm_ray.data import storage
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.verdicts import Verdict

POLL_S, REMOTE_POLL_S = 2.0, 15.0
SHARE = 20  # looking takes at most this part of the time
WINDOW_S = 600.0  # the rate is that of the last ten minutes of work
READERS = 16
UNREAD = 1024  # blocks that wait for their verdicts to be counted; of more, a random part is counted
PENDING = ".pending.parquet"
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Look:
    """One look at a running stage. ``verdicts`` are of ``counted`` rows, of all blocks or of a random part of them."""

    rows: int
    rate: float | None  # rows per second; None before two blocks are done
    newest: float | None  # when the last block was done, seconds since 1970
    verdicts: dict[str, int]
    counted: int

    def seconds_left(self, total: int) -> float | None:
        """Until ``total`` rows are done at the present rate."""
        return (total - self.rows) / self.rate if self.rate else None

    def outcome(self) -> str:
        """The verdicts in a few words, the most frequent first."""
        parts = [f"{name} {count}" for name, count in Counter(self.verdicts).most_common()]
        part = "" if self.counted >= self.rows else f" (of {self.counted} rows)"
        return ", ".join(parts) + part if parts else ""


class Watch:
    """Looks at one stage folder again and again; what was read once is not read again.

    Millions of images are tens of thousands of blocks, and the driver watches them for days: of a block only the hash
    of its name stays, its time for ten minutes, and its whole name if it is one of a random few whose verdicts are to
    be counted.
    """

    def __init__(self, stage: StageFolder) -> None:
        self.stage = stage
        self._seen: set[int] = set()
        self._rows = 0
        self._recent: list[tuple[float, int]] = []  # (when it was done, rows) of each block in the window
        self._unread: list[str] = []  # a random part of the blocks whose verdicts are not counted yet
        self._verdicts: Counter[str] = Counter()

    def rows(self) -> int:
        """Rows of all finished blocks."""
        new = list(storage.new_files(self.stage.place.child("ledger"), self._known))
        counts = self._map(lambda one: self._metadata(one[0]).num_rows, new)
        for (name, moment), rows in zip(new, counts, strict=True):
            self._seen.add(hash(name))
            self._rows += rows
            self._recent.append((moment, rows))
            self._remember(name.removesuffix(".parquet"))
        self._recent = in_window(self._recent)
        return self._rows

    def look(self, most: int = 64) -> Look:
        """Count what is new; read the verdicts of at most ``most`` blocks more, chosen at random."""
        done = self.rows()
        self._count_verdicts(most)
        newest = max(self._recent)[0] if self._recent else None
        return Look(done, rate_of(self._recent), newest, dict(self._verdicts), sum(self._verdicts.values()))

    def _known(self, name: str) -> bool:
        """No finished block, or one that was counted."""
        return not name.endswith(".parquet") or name.endswith(PENDING) or hash(name) in self._seen

    def _remember(self, block: str) -> None:
        if len(self._unread) < UNREAD:
            self._unread.append(block)
        else:
            self._unread[random.randrange(UNREAD)] = block

    def _metadata(self, name: str) -> pq.FileMetaData:
        return pq.read_metadata(f"{self.stage.ledger}/{name}", filesystem=self.stage.fs)

    def _count_verdicts(self, most: int) -> None:
        random.shuffle(self._unread)
        chosen = [self._unread.pop() for _ in range(min(most, len(self._unread)))]
        for names in self._map(self._task_verdicts, chosen):
            self._verdicts.update(names)

    def _task_verdicts(self, block: str) -> list[str]:
        file = data_file(self.stage, block)
        try:
            table: pa.Table = pq.read_table(file, columns=["task_verdict"], filesystem=self.stage.fs, partitioning=None)
        except FileNotFoundError:  # its rows have been judged again since, and are in another file
            return []
        names: list[str] = table.column("task_verdict").to_pylist()
        return names

    def _map(self, work: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
        """At the same time where each is a request; new threads for a few files of a disk would cost more memory."""
        if self.stage.place.local or len(items) < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(work, items))


def data_file(stage: StageFolder, block: str) -> str:
    """Where the rows of a block are, inside ``stage.fs``: Ray writes ``<block>-<part>``, and a block is one part."""
    return f"{stage.data}/{block}-0.parquet"


def in_window(blocks: Iterable[tuple[float, int]]) -> list[tuple[float, int]]:
    """Those of the blocks (when, rows) that were done in the last ten minutes of work."""
    known = list(blocks)
    newest = max(known, default=(0.0, 0))[0]
    return [(moment, rows) for moment, rows in known if moment >= newest - WINDOW_S]


def rate_of(blocks: Iterable[tuple[float, int]]) -> float | None:
    """Rows per second in the last ten minutes of work, from (time, rows) of each block; None from one moment alone."""
    recent = in_window(blocks)
    first, last = min(recent, default=(0.0, 0))[0], max(recent, default=(0.0, 0))[0]
    return sum(rows for moment, rows in recent if moment > first) / (last - first) if last > first else None


def committed_rows(stage: StageFolder) -> int:
    """Rows of all finished blocks."""
    return Watch(stage).rows()


def ledger_files(stage: StageFolder) -> list[str]:
    """Ledger files of the finished blocks, inside ``stage.fs``."""
    files = [path for path, _ in storage.list_files(stage.place.child("ledger"))]
    return [f"{stage.ledger}/{path}" for path in files if path.endswith(".parquet") and not path.endswith(PENDING)]


@contextmanager
def shown(stage: StageFolder, label: str, total: int) -> Iterator[None]:
    """Show rows, rate, time left and verdicts while the block runs."""
    watch, stop = Watch(stage), threading.Event()
    with progress.task(label, total) as bar:

        def look() -> None:
            with suppress(OSError, pa.ArrowException):  # a look at the clock is not worth a failed run
                seen = watch.look()
                bar.update(seen.rows, seen.outcome())
                for name, rows in seen.verdicts.items():
                    gauges.show("stage_rows", rows, stage=label, verdict=name, outcome=Verdict(name).outcome)

        def poll() -> None:
            pause = POLL_S if stage.place.local else REMOTE_POLL_S
            while not stop.wait(pause):
                begun = time.monotonic()
                look()
                pause = max(pause, SHARE * (time.monotonic() - begun))  # a million rows have many blocks to list

        thread = threading.Thread(target=poll, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            look()
