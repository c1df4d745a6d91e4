"""Which rows there are to train on and where each lies: a small table beside the data, and a reader for single rows.

The driver builds it once from the short columns (no image is read, see `lengths`) and writes it to
``train/catalog.parquet``; every worker loads that file and so has the same plan. Rows themselves are read by the
worker that needs them, from the Parquet files where they are.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adamllm_ray.data import storage
from adamllm_ray.data.identity import read_located
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.training.mix import DOMAIN, FORMS, Items

CATALOG = "catalog.parquet"
CACHE_BYTES = 512 << 20  # row groups a worker keeps
READERS = 8  # threads that read the row groups of a step
MEASURED_AT_ONCE = 4096  # rows
TEXTS = ["caption", "caption_instruction", "instruction", "informative", "precise"]
COLUMNS = ["id", "image", *TEXTS]

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("source", _NAME, nullable=False),  # "" for the run's own records, else a replay source
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("verdict", _NAME, nullable=False),  # of the pair: only "ok" trains
        pa.field("tasked", pa.bool_(), nullable=False),
        pa.field("judge_yes", pa.float32()),  # P(Yes) of the judge, where it was asked
        *(pa.field(form, pa.int32(), nullable=False) for form in FORMS),  # tokens in each form; 0: not usable
        pa.field("file", _NAME, nullable=False),  # path inside the run's file system
        pa.field("row", pa.int32(), nullable=False),  # inside the file
    ]
)


class Measure(Protocol):
    """What `lengths.Lengths` is: tokens of rows, and how large an image is."""

    def __call__(self, rows: pa.Table) -> NDArray[np.int32]:
        """[rows, 3]: tokens in each of FORMS, from the columns TEXTS or ``turns``, tasked, width and height."""

    def size(self, image: bytes | None) -> tuple[int, int] | tuple[None, None]:
        """(width, height), None for an image that would be refused."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """The table, sorted by (source, id): the same however the files were cut."""

    table: pa.Table

    def usable(self) -> NDArray[np.intp]:
        """Positions of the rows that may train."""
        return np.flatnonzero(pc.equal(self.table["verdict"], Verdict.OK.value).to_numpy())

    def items(self, agreement: float = 0.0) -> Items:
        """What the mixture needs to know of the usable rows, in the order of `usable`.

        A task to which the judge gives less than ``agreement`` counts as none.
        """
        table = self.table.filter(pc.equal(self.table["verdict"], Verdict.OK.value)).combine_chunks()
        source = _single(table["source"])
        tokens = np.stack([table[form].to_numpy() for form in FORMS], axis=1)
        tasked = table["tasked"].to_numpy()
        if agreement > 0:
            tasked = tasked & (pc.fill_null(table["judge_yes"], 0.0).to_numpy() >= np.float32(agreement))
        return Items(
            source.dictionary.to_pylist(),
            source.indices.to_numpy(zero_copy_only=False),
            _single(table["id"]),
            tasked,
            tokens,
        )


def build_catalog(
    synthesize: StageFolder,
    replay: dict[str, list[str]],
    measure: Measure,
    contaminated: Mapping[str, pa.Array] | None = None,
) -> Catalog:
    """Look at every row once: its verdict, whether it has a kept task, how long it is.

    Args:
        synthesize: the finished stage whose data train.
        replay: Parquet files (inside the same file system) of each replay source, as `replay` wrote them.
        measure: `lengths.Lengths`, or what else gives the tokens of some rows in the three forms.
        contaminated: ids by source that may not train; their verdict says so.
    """
    marked = contaminated or {}
    with storage.storage_errors("read the records", synthesize.uri):
        sources = sorted({DOMAIN: synthesize.parquet_files(), **replay}.items())
        tables = [_source_table(synthesize.fs, source, files, measure, marked.get(source)) for source, files in sources]
    return Catalog(pa.concat_tables(tables).unify_dictionaries().combine_chunks())


def write_catalog(catalog: Catalog, stage: StageFolder) -> None:
    """Put the catalog into the stage folder, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(catalog.table, sink)
    storage.write_small(stage.place.child(CATALOG), sink.getvalue().to_pybytes())


def read_catalog(stage: StageFolder) -> Catalog:
    """What `write_catalog` wrote."""
    return Catalog(pq.read_table(f"{stage.path}/{CATALOG}", filesystem=stage.fs).cast(SCHEMA))


class RowReader:
    """Single rows out of Parquet files. Keeps the row groups read last, up to ``cache_bytes``, and no file open.

    Attributes:
        reads: row groups read so far.
    """

    def __init__(self, catalog: Catalog, fs: Any, cache_bytes: int = CACHE_BYTES) -> None:
        self._fs, self._room = fs, cache_bytes
        usable, files = catalog.usable(), _single(catalog.table["file"])
        self._files: list[str] = files.dictionary.to_pylist()
        self._file = files.indices.to_numpy(zero_copy_only=False)[usable]
        self._row = catalog.table["row"].to_numpy()[usable]
        self._starts: dict[int, NDArray[np.int64]] = {}  # of each file met: first rows of its groups, and its end
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        self.reads = 0

    def read(self, item: int) -> dict[str, Any]:
        """Columns of the row at a position among the usable ones."""
        return self.rows([item])[item]

    def rows(self, items: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Columns of several rows. Each row group is read once; several files at a time, for S3 is mostly waiting."""
        wanted: dict[int, list[int]] = {}
        for item in sorted(set(items), key=lambda item: int(self._row[item])):
            wanted.setdefault(int(self._file[item]), []).append(item)
        with ThreadPoolExecutor(READERS) as pool:
            parts = list(pool.map(lambda file: self._rows_of(file, wanted[file]), wanted))
        return {item: row for part in parts for item, row in part.items()}

    def _rows_of(self, file: int, items: list[int]) -> dict[int, dict[str, Any]]:
        """Rows of one file, asked for in its order."""
        found, first, table = {}, 0, None
        for item in items:
            row = int(self._row[item])
            if table is None or row >= first + len(table):
                group, table = self._find(file, row)
                first = int(self._starts[file][group])
            found[item] = table.slice(row - first, 1).to_pylist()[0]
        return found

    def _find(self, file: int, row: int) -> tuple[int, pa.Table]:
        """(number of the row group, its rows) for a row of a file."""
        with self._lock:
            starts = self._starts.get(file)
            if starts is not None:
                key = file, int(np.searchsorted(starts, row, side="right")) - 1
                if key in self._groups:
                    self._groups.move_to_end(key)
                    return key[1], self._groups[key]
        return self._read(file, row)

    def _read(self, file: int, row: int) -> tuple[int, pa.Table]:
        with self._fs.open_input_file(self._files[file]) as source:
            parquet = pq.ParquetFile(source, pre_buffer=True)
            sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum(sizes)])
            group = int(np.searchsorted(starts, row, side="right")) - 1
            names = [name for name in (*COLUMNS, "turns") if name in parquet.schema_arrow.names]
            table = parquet.read_row_group(group, columns=names, use_threads=False)
        with self._lock:
            self.reads += 1
            self._starts[file] = starts
            if (file, group) not in self._groups:
                self._groups[file, group] = table
                self._room -= table.nbytes
            while self._room < 0 and len(self._groups) > 1:
                self._room += self._groups.popitem(last=False)[1].nbytes
        return group, table


def replay_row(
    id: str,
    image: bytes | None,
    turns: list[tuple[str, str]],
    width: int | None = None,
    height: int | None = None,
) -> dict[str, Any]:
    """A row of a replay file: ``turns`` are (role, text), kept as JSON; width and height are of its image."""
    row = {"id": id, "image": image, "turns": json.dumps(turns), "verdict": Verdict.OK.value}
    return row | {"width": width, "height": height}


REPLAY_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("turns", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
    ]
)


def _source_table(fs: Any, source: str, files: list[str], measure: Measure, marked: pa.Array | None) -> pa.Table:
    """Catalog rows of one source, sorted by id."""
    parts = [_measured(fs, files, _marked(rows, marked), measure) for rows in _gathered(fs, source, files)]
    if not parts:
        return SCHEMA.empty_table()
    found = pa.concat_tables(parts).combine_chunks()
    found = found.take(pc.sort_indices(found["id"]))
    dictionaries = {
        "source": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(found), np.int32)), [source]),
        "file": pa.DictionaryArray.from_arrays(_single(found["file"]), pa.array(files, pa.string())),
        "verdict": _single(found["verdict"]).dictionary_encode(),
    }
    return pa.table(
        [dictionaries.get(name, found[name] if name in found.column_names else None) for name in SCHEMA.names], SCHEMA
    )


def _gathered(fs: Any, source: str, files: list[str]) -> Iterator[pa.Table]:
    """The short columns of all rows, with ``file`` (position in ``files``) and ``row``, some thousands at a time."""
    names = [
        "id",
        "verdict",
        "width",
        "height",
        *([*TEXTS, "task_verdict", "judge_yes"] if source == DOMAIN else ["turns"]),
    ]
    waiting: list[pa.Table] = []
    for file, first, batch in read_located(fs, files, names):
        rows = np.arange(first, first + len(batch), dtype=np.int32)
        table = pa.table(batch).append_column("row", pa.array(rows))
        waiting.append(table.append_column("file", pa.array(np.full(len(rows), file, np.int32))))
        if sum(map(len, waiting)) >= MEASURED_AT_ONCE:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _marked(rows: pa.Table, contaminated: pa.Array | None) -> pa.Table:
    """Sound rows that are on the list get the verdict of the list."""
    if contaminated is None:
        return rows
    hit = pc.and_(
        pc.is_in(rows["id"].cast(pa.large_string()), contaminated), pc.equal(rows["verdict"], Verdict.OK.value)
    )
    verdict = pc.if_else(hit, Verdict.CONTAMINATED.value, rows["verdict"])
    return rows.set_column(rows.column_names.index("verdict"), "verdict", verdict)


def _measured(fs: Any, files: list[str], rows: pa.Table, measure: Measure) -> pa.Table:
    """The catalog's columns of some rows, names not yet shared."""
    usable = pc.equal(rows["verdict"], Verdict.OK.value)
    tasked = np.zeros(len(rows), np.bool_)
    if "task_verdict" in rows.column_names:
        tasked = pc.fill_null(pc.equal(rows["task_verdict"], Verdict.KEPT.value), False).to_numpy()
    tokens = np.zeros((len(rows), len(FORMS)), np.int32)
    chosen = rows.append_column("tasked", pa.array(tasked)).filter(usable)
    tokens[usable.to_numpy()] = measure(_with_sizes(fs, files, chosen, measure))
    columns: dict[str, Any] = {form: tokens[:, index] for index, form in enumerate(FORMS)}
    columns |= {"tasked": tasked, "id": rows["id"].cast(pa.large_string())}
    there = "judge_yes" in rows.column_names
    columns["judge_yes"] = rows["judge_yes"] if there else pa.nulls(len(rows), pa.float32())
    return pa.table(columns | {name: rows[name] for name in ("verdict", "file", "row")})


def _with_sizes(fs: Any, files: list[str], rows: pa.Table, measure: Measure) -> pa.Table:
    """Rows of the run's own data that came without the size of their image get it from the image's header."""
    if "turns" in rows.column_names or not rows["width"].null_count:
        return rows
    places = list(zip(rows["file"].to_pylist(), rows["row"].to_pylist(), strict=True))
    found: dict[tuple[int, int], Any] = {}
    for file in dict.fromkeys(file for file, _ in places):
        with fs.open_input_file(files[file]) as source:
            images = (
                image for batch in pq.ParquetFile(source).iter_batches(64, columns=["image"]) for image in batch[0]
            )
            found |= {(file, row): measure.size(image.as_py()) for row, image in enumerate(images)}
    sizes = [found[place] for place in places]
    for side, name in enumerate(("width", "height")):
        column = pa.array([size[side] for size in sizes], pa.int32())
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


def _single(column: pa.ChunkedArray) -> Any:
    """A column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
