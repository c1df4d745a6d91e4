"""How far a synthesis is, read off its folder: from the driver itself or from any other process, local or S3.

Ray's ledger has one small file per finished block, with the block's ids; the time of the file is when the block was
done. That gives rows, rate and the time left. Verdicts are one short column of the block's data file.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from adamllm_ray import gauges, progress
from adamllm_ray.data import storage
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.verdicts import Verdict

POLL_S, REMOTE_POLL_S = 2.0, 15.0
SHARE = 20  # looking takes at most this part of the time
WINDOW_S = 600.0  # the rate is that of the last ten minutes of work
READERS = 16
PENDING = ".pending.parquet"


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
    """Looks at one stage folder again and again; what was read once is not read again."""

    def __init__(self, stage: StageFolder) -> None:
        self.stage = stage
        self._rows: dict[str, int] = {}
        self._times: dict[str, float] = {}
        self._unread: set[str] = set()  # blocks whose verdicts are not counted yet
        self._verdicts: Counter[str] = Counter()

    def rows(self) -> int:
        """Rows of all finished blocks."""
        new = [info for info in self._ledger() if info.base_name not in self._rows]
        with ThreadPoolExecutor(READERS) as pool:
            counts = list(pool.map(lambda info: pq.read_metadata(info.path, filesystem=self.stage.fs).num_rows, new))
        for info, count in zip(new, counts, strict=True):
            self._rows[info.base_name] = count
            self._times[info.base_name] = info.mtime_ns / 1e9
        self._unread |= {info.base_name.removesuffix(".parquet") for info in new}
        return sum(self._rows.values())

    def look(self, most: int = 64) -> Look:
        """Count what is new; read the verdicts of at most ``most`` blocks more, chosen at random."""
        done = self.rows()
        self._count_verdicts(most)
        times = self._times.values()
        return Look(
            done,
            rate_of([(self._times[name], rows) for name, rows in self._rows.items()]),
            max(times) if times else None,
            dict(self._verdicts),
            sum(self._verdicts.values()),
        )

    def _ledger(self) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.stage.ledger, allow_not_found=True)
        found = self.stage.fs.get_file_info(selector)
        return [
            info
            for info in found
            if info.is_file and info.path.endswith(".parquet") and not info.path.endswith(PENDING)
        ]

    def _count_verdicts(self, most: int) -> None:
        chosen = set(random.sample(sorted(self._unread), min(most, len(self._unread))))
        files = [
            (block, f"{self.stage.data}/{path}")
            for path, _ in storage.list_files(self.stage.place.child("data"))
            if (block := block_of(path)) in chosen
        ]
        with ThreadPoolExecutor(READERS) as pool:
            tables = list(pool.map(lambda item: self._task_verdicts(item[1]), files))
        for (block, _), names in zip(files, tables, strict=True):
            self._unread.discard(block)
            self._verdicts.update(names)

    def _task_verdicts(self, file: str) -> list[str]:
        table: pa.Table = pq.read_table(file, columns=["task_verdict"], filesystem=self.stage.fs, partitioning=None)
        names: list[str] = table.column("task_verdict").to_pylist()
        return names


def block_of(data_file: str) -> str:
    """Name of the block that a data file belongs to: Ray writes ``<block>-<part>.parquet``."""
    return data_file.removesuffix(".parquet").rpartition("-")[0]


def rate_of(blocks: Iterable[tuple[float, int]]) -> float | None:
    """Rows per second in the last ten minutes of work, from (time, rows) of each block; None from one moment alone."""
    ordered = sorted(blocks)
    recent = [(moment, rows) for moment, rows in ordered if moment >= ordered[-1][0] - WINDOW_S]
    if not recent or recent[-1][0] <= recent[0][0]:
        return None
    first = recent[0][0]
    return sum(rows for moment, rows in recent if moment > first) / (recent[-1][0] - first)


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
