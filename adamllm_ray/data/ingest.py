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

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray import progress
from adamllm_ray.config import DataSection, RunConfig
from adamllm_ray.data import images, jsonfile, record, sources, storage
from adamllm_ray.data.record import RECORD_SCHEMA, content_key, record_id
from adamllm_ray.data.run import Manifest, RunFolder, StageFolder, code_version
from adamllm_ray.data.sources import RawPair
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused, RowAccountingError, SourceError, TooManyFailures

STAGE = "ingest"
SHARD_BYTES = 256 << 20
ROW_GROUP_BYTES = 32 << 20  # what a reader holds at a time
THREADS = min(4, os.cpu_count() or 1)  # each may hold one decoded image of data.images.max_pixels
WINDOW = 4 * THREADS  # pairs in flight
EARLY_ROWS, HOPELESS_SHARE = 1000, 0.5  # stop in the middle only when it is beyond doubt
_SURROGATES = re.compile("[\ud800-\udfff]")

Row = dict[str, Any]


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
    writer = _ShardWriter(stage, config.data.rows_per_shard)
    ignored: Counter[str] = Counter()
    with progress.task(STAGE, config.data.limit) as bar:
        for row in _identified(_examined(config.data, ignored)):
            tally.add(row)
            writer.add(row)
            bar.update(tally.rows, f"{tally.failed} failed" if tally.failed else "")
    writer.flush()
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
        "code": code_version(__name__, images.__name__, jsonfile.__name__, record.__name__, *sources.CODE),
    }


def _examined(data: DataSection, ignored: Counter[str]) -> Iterator[Row]:
    """Rows without ids, in the source's order, a window of them checked at the same time."""
    waiting: deque[Future[Row]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="ingest") as pool:
        for pair in sources.read_pairs(data, ignored):
            waiting.append(pool.submit(_examine, pair, data))
            if len(waiting) >= WINDOW:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _examine(pair: RawPair, data: DataSection) -> Row:
    """Load and test the image, clean and test the caption. Verdicts for what is wrong, nothing raised for it."""
    image, verdict, detail = _image(pair, data)
    caption = _clean(pair.caption)
    if verdict is Verdict.OK:
        verdict, detail = _caption_verdict(caption, data.max_caption_chars, detail)
    return {
        "source": _clean(pair.source),
        "key": _clean(pair.key),
        "image": image,
        "caption": caption,
        "caption_instruction": None if pair.caption_instruction is None else _clean(pair.caption_instruction),
        "meta": pair.meta,
        "verdict": verdict.value,
        "verdict_detail": None if detail is None else _clean(detail),
    }


def _image(pair: RawPair, data: DataSection) -> tuple[bytes | None, Verdict, str | None]:
    """(encoded bytes, verdict, detail). Bytes of a refused image are kept, so that it can be looked at."""
    if pair.load is None:
        return None, pair.verdict or Verdict.IMAGE_MISSING, pair.detail
    image: bytes | None = None
    try:
        image = pair.load()
        remark = images.check(image, data.images)
    except ImageRefused as refused:
        too_large = refused.verdict is Verdict.IMAGE_TOO_MANY_BYTES
        return None if too_large else image, refused.verdict, refused.detail
    return image, Verdict.OK, "; ".join(filter(None, (pair.detail, remark))) or None


def _caption_verdict(caption: str, max_chars: int, detail: str | None) -> tuple[Verdict, str | None]:
    if len(caption) > max_chars:
        return Verdict.CAPTION_TOO_LONG, f"{len(caption)} characters, limit {max_chars}"
    visible = any(unicodedata.category(character)[0] in "LNPS" for character in caption)
    return (Verdict.OK, detail) if visible else (Verdict.CAPTION_EMPTY, detail)


def _clean(text: str) -> str:
    """Text that Parquet can hold: NUL removed, lone surrogates replaced by U+FFFD; all else byte for byte."""
    return _SURROGATES.sub("\ufffd", text.replace("\0", ""))


def _identified(rows: Iterator[Row]) -> Iterator[Row]:
    """Give each row its id and mark exact duplicates. Holds two 16-byte digests per row in memory."""
    first: dict[bytes, bytes] = {}
    taken: set[bytes] = set()
    for row in rows:
        row["id"] = name = _unique_id(row, taken)
        if row["verdict"] == Verdict.OK:
            content = bytes.fromhex(content_key(row["image"], row["caption"]))
            original = first.setdefault(content, bytes.fromhex(name)).hex()
            if original != name:
                row["verdict"], row["verdict_detail"] = Verdict.DUPLICATE.value, f"same image and caption as {original}"
        yield row


def _unique_id(row: Row, taken: set[bytes]) -> str:
    """Id of a row. A source whose keys repeat gets numbered keys, because Ray's ledger needs unique ids."""
    key, number = row["key"], 1
    while True:
        name = record_id(row["image"], row["caption"], f"{row['source']}\x1f{row['key']}")
        if (digest := bytes.fromhex(name)) not in taken:
            taken.add(digest)
            return name
        number += 1
        row["key"] = f"{key}#{number}"


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


class _ShardWriter:
    """Collects rows and writes them as Parquet files of at most ``max_rows`` rows and SHARD_BYTES."""

    def __init__(self, stage: StageFolder, max_rows: int) -> None:
        self._stage, self._max_rows = stage, max_rows
        self._rows: list[Row] = []
        self._bytes = 0
        self.shards = 0

    def add(self, row: Row) -> None:
        size = len(row["image"] or b"") + 4 * len(row["caption"]) + len(row["meta"] or "")
        if self._rows and (len(self._rows) >= self._max_rows or self._bytes + size > SHARD_BYTES):
            self.flush()
        self._rows.append(row)
        self._bytes += size

    def flush(self) -> None:
        """Write what has been collected."""
        if not self._rows:
            return
        path = f"{self._stage.data}/part-{self.shards:05d}.parquet"
        table = pa.Table.from_pylist(self._rows, schema=RECORD_SCHEMA)
        per_group = max(1, len(self._rows) * ROW_GROUP_BYTES // max(self._bytes, 1))
        with storage.storage_errors("write records", self._stage.uri):
            pq.write_table(
                table,
                path,
                filesystem=self._stage.fs,
                row_group_size=per_group,
                compression={name: "none" if name == "image" else "zstd" for name in RECORD_SCHEMA.names},
                use_dictionary=["source", "verdict", "caption_instruction"],
                write_statistics=["id"],
                write_page_checksum=True,
            )
        self.shards += 1
        self._rows, self._bytes = [], 0
