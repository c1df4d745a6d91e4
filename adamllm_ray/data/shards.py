"""Writes records as Parquet files of about equal size, image bytes inside, one row group in memory at a time."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.data import storage
from adamllm_ray.data.record import RECORD_SCHEMA
from adamllm_ray.data.run import StageFolder

_REPEATED = ("source", "verdict", "caption_instruction", "split", "task")
_LONG = ("meta", "turns")  # what may be long beside image and caption
ROW_GROUP_BYTES = 32 << 20  # what a writer, and later a reader, holds at a time


class ShardWriter:
    """``part-00000.parquet`` and so on below ``stage.data``.

    A shard is closed before the row that would carry it past ``max_bytes`` (of images and texts) or ``max_rows``. So
    all but the last are within one row of the same size, or have the same number of rows where images are small.
    """

    def __init__(self, stage: StageFolder, max_rows: int, max_bytes: int, schema: pa.Schema = RECORD_SCHEMA) -> None:
        self._stage, self._max_rows, self._max_bytes, self._schema = stage, max_rows, max_bytes, schema
        self._group: list[dict[str, Any]] = []
        self._group_bytes = self._bytes = self._rows = 0
        self._file: pq.ParquetWriter | None = None
        self.shards = 0

    def add(self, row: dict[str, Any]) -> None:
        """Append one row of the schema. Raises StorageError when it cannot be written."""
        size = len(row["image"] or b"") + 4 * len(row["caption"]) + sum(len(row.get(name) or "") for name in _LONG)
        if self._rows and (self._rows >= self._max_rows or self._bytes + size > self._max_bytes):
            self.close()
        if self._group and self._group_bytes + size > ROW_GROUP_BYTES:
            self._flush()
        self._group.append(row)
        self._group_bytes += size
        self._bytes += size
        self._rows += 1

    def close(self) -> None:
        """Finish the shard that is being written, if there is one."""
        if self._group:
            self._flush()
        if self._file is not None:
            with storage.storage_errors("write records", self._stage.uri):
                self._file.close()
            self.shards += 1
        self._file, self._bytes, self._rows = None, 0, 0

    def _flush(self) -> None:
        """Write the rows at hand as one row group."""
        table = pa.Table.from_pylist(self._group, schema=self._schema)
        with storage.storage_errors("write records", self._stage.uri):
            if self._file is None:
                self._file = self._open()
            self._file.write_table(table)
        self._group, self._group_bytes = [], 0

    def _open(self) -> pq.ParquetWriter:
        return pq.ParquetWriter(
            f"{self._stage.data}/part-{self.shards:05d}.parquet",
            self._schema,
            filesystem=self._stage.fs,
            compression={name: "none" if name == "image" else "zstd" for name in self._schema.names},
            use_dictionary=[name for name in _REPEATED if name in self._schema.names],
            write_statistics=["id"],
            write_page_checksum=True,
        )
