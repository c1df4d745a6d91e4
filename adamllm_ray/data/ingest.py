"""First stage: a source becomes records, one per pair, checked once so that no later stage meets a bad one.

    adamllm ingest CONFIG                      or    adamllm run CONFIG

Streams the source with bounded memory: images are read and test-decoded by a few threads (Pillow releases the
interpreter lock), rows come out in the source's order, shards are cut by rows and bytes. No Ray yet: at laptop
scale one process is enough; a later issue moves listing and checking of large S3 sources to Ray Data.

The stage is deterministic, so an ingest that was killed is simply done again.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from adamllm_ray import progress
from adamllm_ray.config import DataSection, RunConfig
from adamllm_ray.data import images, sources
from adamllm_ray.data.duplicates import Duplicates, perceptual_hash
from adamllm_ray.data.run import Manifest, RunFolder, code_version
from adamllm_ray.data.shards import ShardWriter
from adamllm_ray.data.sources import RawPair
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused, RowAccountingError, SourceError, TooManyFailures

STAGE = "ingest"
THREADS = min(4, os.cpu_count() or 1)  # each may hold one decoded image of data.images.max_pixels
WINDOW = 4 * THREADS  # pairs in flight
EARLY_ROWS, HOPELESS_SHARE = 1000, 0.5  # stop in the middle only when it is beyond doubt
CODE = [f"adamllm_ray.data.{name}" for name in ("duplicates", "images", "jsonfile", "record")]  # what decides the rows
_SURROGATES = re.compile("[\ud800-\udfff]")

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
    if len(stage.row_ids()) != tally.rows:
        raise RowAccountingError(f"{stage.data} holds {len(stage.row_ids())} rows, {tally.rows} were read")
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
    """Rows without ids, in the source's order, a window of them checked at the same time."""
    waiting: deque[Future[Examined]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="ingest") as pool:
        for pair in sources.read_pairs(data, ignored):
            waiting.append(pool.submit(_examine, pair, data))
            if len(waiting) >= WINDOW:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _examine(pair: RawPair, data: DataSection) -> Examined:
    """Load and test the image, clean and test the caption. Verdicts for what is wrong, nothing raised for it."""
    image, verdict, detail, perceptual = _image(pair, data)
    caption = _clean(pair.caption)
    if verdict is Verdict.OK:
        verdict, detail = _caption_verdict(caption, data.max_caption_chars, detail)
    row = {
        "source": _clean(pair.source),
        "key": _clean(pair.key),
        "image": image,
        "caption": caption,
        "caption_instruction": None if pair.caption_instruction is None else _clean(pair.caption_instruction),
        "meta": pair.meta,
        "verdict": verdict.value,
        "verdict_detail": None if detail is None else _clean(detail),
    }
    return row, perceptual


def _image(pair: RawPair, data: DataSection) -> tuple[bytes | None, Verdict, str | None, int | None]:
    """(encoded bytes, verdict, detail, perceptual hash if wanted). Bytes of a refused image stay, to be looked at."""
    if pair.load is None:
        return None, pair.verdict or Verdict.IMAGE_MISSING, pair.detail, None
    image: bytes | None = None
    try:
        image = pair.load()
        remark, pixels = images.examine(image, data.images)
        perceptual = None if data.near_duplicates is None else perceptual_hash(pixels)
    except ImageRefused as refused:
        too_large = refused.verdict is Verdict.IMAGE_TOO_MANY_BYTES
        return None if too_large else image, refused.verdict, refused.detail, None
    return image, Verdict.OK, "; ".join(filter(None, (pair.detail, remark))) or None, perceptual


def _caption_verdict(caption: str, max_chars: int, detail: str | None) -> tuple[Verdict, str | None]:
    if len(caption) > max_chars:
        return Verdict.CAPTION_TOO_LONG, f"{len(caption)} characters, limit {max_chars}"
    visible = any(unicodedata.category(character)[0] in "LNPS" for character in caption)
    return (Verdict.OK, detail) if visible else (Verdict.CAPTION_EMPTY, detail)


def _clean(text: str) -> str:
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
            self.examples.setdefault(verdict, f"row {row['key']} of {row['source']}: {row['verdict_detail']}")
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
            f"  {count} x {verdict}, e.g. {self.examples[verdict][:300]}"
            for verdict, count in self.verdicts.most_common()
            if verdict in self.examples
        ]
        return TooManyFailures(
            f"{self.failed} of {self.rows} records failed ({self.failed / self.rows:.1%}; data.max_failed_share is "
            f"{self.ceiling:.1%}):\n" + "\n".join(reasons) + f"\nEach row and its reason is in {self.where}/data. "
            "Mend the source, or set data.max_failed_share higher, and run the same command again (with --force-new "
            "if the data file itself changed)."
        )
