"""Which rows there are to train on and where each lies: a small table beside the data, and a reader for single rows.

The driver builds it once, measuring every row (see `lengths`), and writes it to ``train/catalog.parquet``; every
worker loads that file and so has the same plan. Rows themselves are read by the
worker that needs them, from the Parquet files where they are.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adamllm_ray.data import storage
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.training.mix import DOMAIN, Item

CATALOG = "catalog.parquet"
CACHE_BYTES = 512 << 20  # row groups a worker keeps
COLUMNS = ["id", "image", "caption", "caption_instruction", "instruction", "informative", "precise"]
Measure = Callable[[dict[str, Any]], tuple[int, int, int]]

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),  # "" for the run's own records, else a replay source
        pa.field("id", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),  # of the pair: only "ok" trains
        pa.field("tasked", pa.bool_(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32(), 3), nullable=False),  # in the forms both, caption, task; 0: not usable
        pa.field("file", pa.string(), nullable=False),  # path inside the run's file system
        pa.field("group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # inside the row group
    ]
)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The table, sorted by (source, id): the same however the files were cut."""

    table: pa.Table

    def usable(self) -> list[int]:
        """Positions of the rows that may train."""
        flags = pc.equal(self.table["verdict"], Verdict.OK.value).to_pylist()
        return [index for index, flag in enumerate(flags) if flag]

    def items(self) -> list[Item]:
        """What the mixture needs to know of the usable rows, in the order of `usable`."""
        columns = [self.table[name].to_pylist() for name in ("source", "id", "tasked", "tokens")]
        rows = list(zip(*columns, strict=True))
        return [
            Item(source, id, tasked, tuple(tokens))
            for source, id, tasked, tokens in map(rows.__getitem__, self.usable())
        ]


def build_catalog(synthesize: StageFolder, replay: dict[str, list[str]], measure: Measure) -> Catalog:
    """Look at every row once: its verdict, whether it has a kept task, how long it is.

    Args:
        synthesize: the finished stage whose data train.
        replay: Parquet files (inside the same file system) of each replay source, as `replay` wrote them.
        measure: `lengths.Lengths`, or what else gives a row's tokens in the three forms.
    """
    files = [(DOMAIN, path) for path in synthesize.parquet_files()]
    files += [(source, path) for source, paths in replay.items() for path in paths]
    tables = [table for source, path in files for table in _groups(synthesize.fs, source, path, measure)]
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    return Catalog(table.sort_by([("source", "ascending"), ("id", "ascending")]).combine_chunks())


def write_catalog(catalog: Catalog, stage: StageFolder) -> None:
    """Put the catalog into the stage folder, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(catalog.table, sink)
    storage.write_small(stage.place.child(CATALOG), sink.getvalue().to_pybytes())


def read_catalog(stage: StageFolder) -> Catalog:
    """What `write_catalog` wrote."""
    return Catalog(pq.read_table(f"{stage.path}/{CATALOG}", filesystem=stage.fs))


class RowReader:
    """Single rows out of Parquet files. Keeps the row groups read last, up to ``CACHE_BYTES``."""

    def __init__(self, catalog: Catalog, fs: Any) -> None:
        self._fs = fs
        self._places = [catalog.table[name].to_pylist() for name in ("file", "group", "row")]
        self._usable = catalog.usable()
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._bytes = 0

    def read(self, item: int) -> dict[str, Any]:
        """Columns of the row at a position among the usable ones."""
        file, group, row = (column[self._usable[item]] for column in self._places)
        found: dict[str, Any] = self._group(file, group).slice(row, 1).to_pylist()[0]
        return found

    def _group(self, file: str, group: int) -> pa.Table:
        key = (file, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        with self._fs.open_input_file(file) as source:
            parquet = pq.ParquetFile(source)
            names = [name for name in (*COLUMNS, "turns") if name in parquet.schema_arrow.names]
            table = parquet.read_row_group(group, columns=names)
        self._groups[key] = table
        self._bytes += table.nbytes
        while self._bytes > CACHE_BYTES and len(self._groups) > 1:
            self._bytes -= self._groups.popitem(last=False)[1].nbytes
        return table


def replay_row(id: str, image: bytes | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    """A row of a replay file: ``turns`` are (role, text), kept as JSON."""
    return {"id": id, "image": image, "turns": json.dumps(turns), "verdict": Verdict.OK.value}


REPLAY_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("turns", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
    ]
)


def _groups(fs: Any, source: str, path: str, measure: Measure) -> Iterator[pa.Table]:
    """Catalog rows of one file, a table for each row group."""
    with fs.open_input_file(path) as handle:
        parquet = pq.ParquetFile(handle)
        names = [name for name in (*COLUMNS, "turns", "verdict", "task_verdict") if name in parquet.schema_arrow.names]
        for group in range(parquet.num_row_groups):
            rows = parquet.read_row_group(group, columns=names).to_pylist()
            found = [
                {
                    "source": source,
                    "id": row["id"],
                    "verdict": row["verdict"],
                    "tasked": row.get("task_verdict") == Verdict.KEPT,
                    "file": path,
                    "group": group,
                    "row": index,
                }
                for index, row in enumerate(rows)
            ]
            for entry, row in zip(found, rows, strict=True):
                usable = entry["verdict"] == Verdict.OK
                entry["tokens"] = measure(row | {"tasked": entry["tasked"]}) if usable else (0, 0, 0)
            yield pa.Table.from_pylist(found, SCHEMA)
