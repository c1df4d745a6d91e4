"""First stage: a source becomes records, one per pair, checked once so that no later stage meets a bad one.

    adamllm ingest CONFIG                      or    adamllm run CONFIG

Streams the source with bounded memory: images are read by some threads (many for S3, where waiting is all they do) and
test-decoded by others (Pillow releases the interpreter lock), rows come out in the source's order, shards are cut by
rows and bytes. No Ray: one process keeps as many cores busy as decoding can use, and order, ids and shards do not
depend on how many there are. Per row, memory holds what `duplicates` needs, some 200 bytes.

The stage is deterministic, so an ingest that was killed is simply done again.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adamllm_ray import progress
from adamllm_ray.config import DataSection, RunConfig
from adamllm_ray.data import images, sources
from adamllm_ray.data.duplicates import Duplicates, perceptual_hash
from adamllm_ray.data.identity import ids_of
from adamllm_ray.data.manifest import Manifest, code_version
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.shards import ShardWriter
from adamllm_ray.data.sources import RawPair
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused, RowAccountingError, SourceError, TooManyFailures, foreign

STAGE = "ingest"
THREADS = min(16, os.cpu_count() or 1)  # each may hold one decoded image of data.images.max_pixels
LOCAL_READERS = 4
REMOTE_READERS = 32  # requests to an object store at a time; twice as many images of data.images.max_bytes may wait
EARLY_ROWS, HOPELESS_SHARE = 1000, 0.5  # stop in the middle only when it is beyond doubt
CODE = [f"adamllm_ray.data.{name}" for name in ("duplicates", "images", "jsonfile", "record")]  # what decides the rows
_SURROGATES = re.compile("[\ud800-\udfff]")

A = TypeVar("A")
B = TypeVar("B")
Row = dict[str, Any]
Examined = tuple[Row, int | None]  # a row without its id, and the perceptual hash of its image


def ingest(config: RunConfig, run: RunFolder, *, force_new: bool = False) -> Manifest:
    """Read the source of ``config.data`` and write ``ingest/data/part-*.parquet`` with RECORD_SCHEMA.

    ``extra`` of the manifest: ``content`` (digest of all ids in order), ``shards``, ``image_bytes`` and ``ignored``
    (what the source holds that belongs to no pair, counted by kind).

    Raises:
        SourceError: the source cannot be read as a whole, or holds no record.
        TooManyFailures: the failed share passed ``data.max_failed_share``; names the most frequent reasons.
        FingerprintMismatch, StorageError, RowAccountingError: see ``StageFolder``.
    """
    started = time.monotonic()
    stage = run.stage(STAGE)
    if stage.begin(fingerprint(config.data), force_new=force_new) == "finished":
        finished = stage.manifest()
        if finished is not None:
            return finished
    stage.clear()
    tally = _Tally(config.data.max_failed_share, stage.uri)
    writer = ShardWriter(stage, config.data.rows_per_shard, config.data.shard_bytes)
    duplicates = Duplicates(config.data.near_duplicates)
    ignored: Counter[str] = Counter()
    with progress.task(STAGE, config.data.limit) as bar:
        for row, perceptual in _examined(config.data, ignored):
            duplicates.mark(row, perceptual)
            tally.add(row)
            writer.add(row)
            bar.update(tally.rows, f"{tally.failed} failed" if tally.failed else "")
    writer.close()
    tally.conclude(config.data.path or config.data.format)
    written = len(ids_of(stage.fs, stage.parquet_files(), stage.data))
    if written != tally.rows:
        raise RowAccountingError(f"{stage.data} holds {written} rows, {tally.rows} were read")
    extra = {
        "content": tally.digest.hexdigest(),
        "shards": writer.shards,
        "image_bytes": tally.image_bytes,
        "ignored": dict(ignored),
    }
    return stage.finish(
        rows_in=tally.rows, verdicts=dict(tally.verdicts), extra=extra, seconds=time.monotonic() - started
    )


def fingerprint(data: DataSection) -> dict[str, Any]:
    """What the ingested rows depend on: the source, the section (without its ceiling) and this code."""
    return {
        "source": sources.source_fingerprint(data),
        "data": data.model_dump(mode="json", exclude={"max_failed_share", "s3"}),
        "code": code_version(__name__, *CODE, *sources.CODE),
    }


def _examined(data: DataSection, ignored: Counter[str]) -> Iterator[Examined]:
    """Rows without ids, in the source's order. Waiting for bytes and decoding them go on at the same time, apart."""
    remote = (data.image_folder or data.path).startswith("s3://")
    readers = REMOTE_READERS if remote else LOCAL_READERS
    with (
        ThreadPoolExecutor(readers, thread_name_prefix="read") as reading,
        ThreadPoolExecutor(THREADS, thread_name_prefix="check") as checking,
    ):
        loaded = in_order(reading, _load, sources.read_pairs(data, ignored), 2 * readers)
        yield from in_order(checking, lambda item: _examine(item, data), loaded, 2 * THREADS)


def in_order(pool: Executor, function: Callable[[A], B], items: Iterator[A], window: int) -> Iterator[B]:
    """``map`` over a pool with at most ``window`` items taken in advance; results in the order of the items."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A pair and its encoded image, or why there is none."""

    pair: RawPair
    image: bytes | None = None
    verdict: Verdict = Verdict.OK
    detail: str | None = None


def _load(pair: RawPair) -> _Loaded:
    if pair.load is None:
        return _Loaded(pair, None, pair.verdict or Verdict.IMAGE_MISSING, pair.detail)
    try:
        return _Loaded(pair, pair.load(), Verdict.OK, pair.detail)
    except ImageRefused as refused:
        return _Loaded(pair, None, refused.verdict, refused.detail)


def _examine(loaded: _Loaded, data: DataSection) -> Examined:
    """Test the image, clean and test the caption. Verdicts for what is wrong, nothing raised for it."""
    pair = loaded.pair
    picture = _image(loaded, data)
    verdict, detail = picture.verdict, picture.detail
    caption = clean(pair.caption)
    if verdict is Verdict.OK:
        verdict, detail = _caption_verdict(caption, data.max_caption_chars, detail)
    row = {
        "source": clean(pair.source),
        "key": clean(pair.key),
        "image": picture.image,
        "width": picture.width,
        "height": picture.height,
        "caption": caption,
        "caption_instruction": None if pair.caption_instruction is None else clean(pair.caption_instruction),
        "meta": pair.meta,
        "verdict": verdict.value,
        "verdict_detail": None if detail is None else clean(detail),
    }
    return row, picture.perceptual


@dataclass(frozen=True, slots=True)
class _Picture:
    """An image as the row has it: encoded bytes, what became of it, and the size in pixels of what decodes."""

    image: bytes | None
    verdict: Verdict
    detail: str | None
    perceptual: int | None = None
    width: int | None = None
    height: int | None = None


def _image(loaded: _Loaded, data: DataSection) -> _Picture:
    """Test-decode. Bytes of a refused image stay, to be looked at."""
    image = loaded.image
    if image is None:
        return _Picture(None, loaded.verdict, loaded.detail)
    try:
        remark, pixels = images.examine(image, data.images)
    except ImageRefused as refused:
        too_large = refused.verdict is Verdict.IMAGE_TOO_MANY_BYTES
        return _Picture(None if too_large else image, refused.verdict, refused.detail)
    perceptual = None if data.near_duplicates is None else perceptual_hash(pixels)
    remarks = "; ".join(filter(None, (loaded.detail, remark))) or None
    return _Picture(image, Verdict.OK, remarks, perceptual, *pixels.size)


def _caption_verdict(caption: str, max_chars: int, detail: str | None) -> tuple[Verdict, str | None]:
    if len(caption) > max_chars:
        return Verdict.CAPTION_TOO_LONG, f"{len(caption)} characters, limit {max_chars}"
    visible = any(unicodedata.category(character)[0] in "LNPS" for character in caption)
    return (Verdict.OK, detail) if visible else (Verdict.CAPTION_EMPTY, detail)


def clean(text: str) -> str:
    """Text that Parquet can hold: NUL removed, lone surrogates replaced by U+FFFD; all else byte for byte."""
    return _SURROGATES.sub("\ufffd", text.replace("\0", ""))


@dataclass
class _Tally:
    """Counts, an example of each failure, and the ceiling."""

    ceiling: float
    where: str
    rows: int = 0
    failed: int = 0
    image_bytes: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def add(self, row: Row) -> None:
        verdict = row["verdict"]
        self.rows += 1
        self.verdicts[verdict] += 1
        self.image_bytes += len(row["image"] or b"")
        self.digest.update(bytes.fromhex(row["id"]))
        if Verdict(verdict).outcome == "failed":
            self.failed += 1
            self.examples.setdefault(verdict, foreign(f"row {row['key']} of {row['source']}: {row['verdict_detail']}"))
            if self.rows >= EARLY_ROWS and self.failed > max(self.ceiling, HOPELESS_SHARE) * self.rows:
                raise self._too_many()

    def conclude(self, source: str) -> None:
        """Raise when nothing was read or too much of it failed."""
        if not self.rows:
            raise SourceError(f"data.path: {source} holds no records")
        if self.failed > self.ceiling * self.rows:
            raise self._too_many()

    def _too_many(self) -> TooManyFailures:
        reasons = [
            f"  {count} x {verdict}, e.g. {self.examples[verdict]}"
            for verdict, count in self.verdicts.most_common()
            if verdict in self.examples
        ]
        return TooManyFailures(
            f"{self.failed} of {self.rows} records failed ({self.failed / self.rows:.1%}; data.max_failed_share is "
            f"{self.ceiling:.1%}):\n" + "\n".join(reasons) + f"\nEach row and its reason is in {self.where}/data. "
            "Mend the source, or set data.max_failed_share higher, and run the same command again (with --force-new "
            "if the data file itself changed)."
        )
