"""Rows of a task's files, one dictionary each: Parquet, JSONL, or a folder that ``datasets``' save_to_disk wrote.

    source = TaskSource("evaluation.tasks.0", "/data/slake", split=None, s3=S3Section())
    for row in source.rows(): ...

A file that cannot be read at all is a SourceError that names the field. A row that cannot, such as a broken JSON line,
is ``{PROBLEM: why}``. Nothing is unpickled, and images are read from the folder of the files and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from adamllm_ray.config import ImageLimits, S3Section
from adamllm_ray.data import storage
from adamllm_ray.data.sources import table
from adamllm_ray.data.sources.folder import ImageFolder
from adamllm_ray.data.sources.places import files_digest, unreachable
from adamllm_ray.errors import ImageRefused, SourceError

Row = dict[str, Any]

PROBLEM = "_problem"  # key of what is wrong with a row that could not be read
SUFFIXES = (".parquet", ".pq", ".jsonl")
MAX_LINE_BYTES = 64 << 20
WHOLE_FILE_BYTES = 64 << 20
IMAGES_AT_ONCE = 16
_FILE_MAGIC = b"ARROW1"
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev")
_OF_SPLIT = re.compile(rf"({'|'.join(_SPLITS)})(?=[-_.])")


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Where the rows of one task are.

    Attributes:
        field: of the configuration, for messages.
        path: a file or a folder, local or ``s3://``.
        split: of a folder with several splits.
        names: what a benchmark's folder is called in its release, tried before ``split`` is asked for.
        limits: how large an image file may be.
    """

    field: str
    path: str
    split: str | None = None
    names: tuple[str, ...] = ()
    s3: S3Section | None = None
    limits: ImageLimits = ImageLimits()

    def rows(self, columns: tuple[str, ...] | None = None) -> Iterator[Row]:
        """Every row, files in the order of their names; only these columns if given.

        Raises:
            SourceError: there is nothing, or it is not readable.
        """
        for file in self.files():
            yield from self._rows(file, columns)

    def columns(self) -> list[str] | None:
        """Names of the columns of the first file; None where rows need not be alike (JSONL)."""
        schema = self._schema()
        return None if schema is None else list(schema.names)

    def _schema(self) -> pa.Schema | None:
        first = self.files()[0]
        if first.path.endswith(".jsonl"):
            return None
        with self._errors(), first.fs.open_input_file(first.path) as file, table.opening(first.uri):
            schema: pa.Schema = (
                _arrow(file).schema if first.path.endswith(".arrow") else pq.ParquetFile(file).schema_arrow
            )
        return schema

    def images(self) -> ImageFolder:
        """The folder that image paths are relative to: the one that the files are in."""
        return ImageFolder(self.files()[0].uri.rpartition("/")[0] or "/", self.limits.max_bytes, self.s3)

    def beside(self, name: str) -> bytes | None:
        """Content of a small file in the folder of the data or in one of the two above; None if there is none."""
        place = self.files()[0]
        with self._errors():
            for _ in range(3):
                place = _parent(place)
                found = storage.read_small(place.child(name)) if place.path.strip("/") else None
                if found is not None:
                    return found
        return None

    def split_read(self) -> str | None:
        """The split that the files say they are of, by their names or their folder's; None where they do not say."""
        return self._found()[1]

    def digest(self, beside: str = "") -> str:
        """Hex digest over everything that questions are made of.

        Of files the content of small ones, and sizes and both ends of large ones; the content of the small file
        ``beside`` them, and of every image that rows name by its path. Copies elsewhere have the same digest.
        """
        parts = [self._files_digest(), self._images_digest()]
        if beside and (content := self.beside(beside)) is not None:
            parts.append(hashlib.sha256(content).hexdigest())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _images_digest(self) -> str | None:
        """Sixteen at a time, each read once, as their questions read them; None where rows hold their images."""
        if not self._names_images():
            return None
        names = sorted({name for row in self.rows(("image",)) if (name := image_name(row.get("image")))})
        folder = self.images()

        def digest(name: str) -> str:
            try:
                return hashlib.sha256(folder.read(name)).hexdigest()
            except ImageRefused as refused:
                return str(refused.verdict)

        with ThreadPoolExecutor(IMAGES_AT_ONCE) as threads:
            found = list(zip(names, threads.map(digest, names), strict=True))
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def _names_images(self) -> bool:
        """Rows may name a file each: JSONL, and tables whose image column is of texts."""
        schema = self._schema()
        if schema is None:
            return True
        kind = schema.field("image").type if "image" in schema.names else None
        return kind in (pa.string(), pa.large_string())

    def _files_digest(self) -> str:
        found = self.files()
        with self._errors():
            sizes = [info.size for info in found[0].fs.get_file_info([file.path for file in found])]
            whole = [storage.sha256(file) for file, size in zip(found, sizes, strict=True) if size <= WHOLE_FILE_BYTES]
        ends = [(file, file.path, size) for file, size in zip(found, sizes, strict=True) if size > WHOLE_FILE_BYTES]
        return hashlib.sha256(json.dumps([whole, files_digest(ends)]).encode()).hexdigest()

    def files(self) -> list[storage.Location]:
        """The files, in the order of their rows. Raises SourceError when there are none."""
        return self._found()[0]

    def _found(self) -> tuple[list[storage.Location], str | None]:
        """The files, and the split that they say they are of."""
        place = storage.resolve(self.path, self.s3)
        with self._errors():
            kind = place.fs.get_file_info(place.path).type
            if kind == pafs.FileType.NotFound:
                raise SourceError(f"{self.field}: {self.path} does not exist")
            if kind == pafs.FileType.File:
                if not self.path.endswith(SUFFIXES):
                    raise SourceError(
                        f"{self.field}: {self.path} is neither a .parquet nor a .jsonl file, nor a folder, nor the "
                        "word 'pocket'"
                    )
                return [place], _split_of(_last(place.path))
            return self._folder(place)

    def _folder(self, place: storage.Location) -> tuple[list[storage.Location], str | None]:
        """Files of a folder: a saved data set, one of its splits, or Parquet files. Never those of another split."""
        own = _last(place.path)
        wanted = self.split or (own if own in _SPLITS else "test")
        found = [name for name, _ in storage.list_files(place)]
        for step in (*self.names, wanted):
            inside = [name[len(step) + 1 :] for name in found if name.startswith(f"{step}/")]
            if inside:
                place, found = place.child(step), inside
        here = wanted if _last(place.path) == wanted else None
        saved = sorted(name.removesuffix("state.json") for name in found if f"/{name}".endswith("/state.json"))
        said = _split_of(saved[0], wanted) or here if len(saved) == 1 else None
        if len(saved) == 1 and (said == wanted or (said is None and (self.names or not self.split))):
            return self._arrow_files(place.child(saved[0].rstrip("/")) if saved[0] else place), said
        tables = [name for name in found if name.endswith(SUFFIXES)]
        splits = [_split_of(name, wanted) for name in tables]
        taken = [name for name, split in zip(tables, splits, strict=True) if split == wanted]
        if not taken and not any(splits) and (here or not self.split):
            taken, wanted = tables, here or ""
        if not taken:
            heads = ", ".join(sorted({name.partition("/")[0] for name in found})[:20]) or "nothing"
            raise SourceError(
                f"{self.field}: {place.uri} holds no '{wanted or 'test'}' split that could be read, but {heads}; name "
                "the folder of one saved data set or of Parquet files as path, or one of its splits as split"
            )
        return [place.child(name) for name in taken], wanted or None

    def _arrow_files(self, place: storage.Location) -> list[storage.Location]:
        """Arrow files in the order of ``state.json``, which is the order of the rows."""
        state = _json(place.child("state.json"))
        entries = state.get("_data_files") if isinstance(state, dict) else None
        names = [one.get("filename") for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
        if not names or not all(isinstance(name, str) and name and "/" not in name for name in names):
            raise SourceError(f"{self.field}: {place.uri}/state.json names no data files in its folder")
        if state.get("_indices_data_files"):
            raise SourceError(f"{self.field}: {place.uri} holds a selection of rows; save it after flatten_indices()")
        return [place.child(str(name)) for name in names]

    def _rows(self, file: storage.Location, columns: tuple[str, ...] | None) -> Iterator[Row]:
        if file.path.endswith(".jsonl"):
            with self._errors(), file.fs.open_input_stream(file.path) as raw:
                yield from map(_json_row, self._lines(raw))
            return
        with self._errors(), file.fs.open_input_file(file.path) as raw:
            batches = (
                _arrow_batches(raw, file) if file.path.endswith(".arrow") else _parquet_batches(raw, file, columns)
            )
            for batch in batches:
                there = [name for name in columns or batch.schema.names if name in batch.schema.names]
                yield from table.rows(batch.select(there))

    def _lines(self, raw: Any) -> Iterator[bytes]:
        rest = b""
        while chunk := raw.read(1 << 20):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line for line in whole if line.strip())
            if len(rest) > MAX_LINE_BYTES:
                raise SourceError(f"{self.field}: a line is longer than {MAX_LINE_BYTES} bytes; this is not JSONL")
        if rest.strip():
            yield rest

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """I/O errors of the block become a SourceError with field and path, or a StorageError when S3 is in trouble."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            stored = self.path.startswith("s3://") and isinstance(error, OSError)
            if stored and not isinstance(error, FileNotFoundError):
                raise unreachable(error, f"{self.path} ({self.field})") from error
            raise SourceError(f"{self.field}: cannot read {self.path}: {error}") from error


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {PROBLEM: f"not JSON: {error}"}
    return row if isinstance(row, dict) else {PROBLEM: "the line is not a JSON object"}


def _parquet_batches(raw: Any, file: storage.Location, columns: tuple[str, ...] | None) -> Iterator[pa.RecordBatch]:
    with table.opening(file.uri):
        parquet = pq.ParquetFile(raw)
    table.refuse_pickles(parquet.schema_arrow, file.uri)
    wanted = None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]
    yield from parquet.iter_batches(batch_size=table.BATCH_ROWS, columns=wanted)


def _arrow_batches(raw: Any, file: storage.Location) -> Iterator[pa.RecordBatch]:
    with table.opening(file.uri):
        reader = _arrow(raw)
    table.refuse_pickles(reader.schema, file.uri)
    streamed = isinstance(reader, pa.ipc.RecordBatchStreamReader)
    for batch in reader if streamed else map(reader.get_batch, range(reader.num_record_batches)):
        batch.validate(full=True)  # offsets that lead outside the buffers would read foreign memory
        yield batch


def _arrow(raw: Any) -> Any:
    """A reader of an Arrow stream, or of the file format."""
    in_file_format = raw.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    raw.seek(0)
    return pa.ipc.open_file(raw) if in_file_format else pa.ipc.open_stream(raw)


def image_name(value: Any) -> str | None:
    """The path that a row's image is named by, if it is."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value if isinstance(value, str) and value else None


def _split_of(name: str, wanted: str = "") -> str | None:
    """The split that a path says it is of: by its file's name or, if that does not say, by a folder's."""
    *folders, base = name.split("/")
    if wanted and re.match(rf"{re.escape(wanted)}[-_.]", base):
        return wanted
    if match := _OF_SPLIT.match(base):
        return match[1]
    return next((part for part in reversed(folders) if part in _SPLITS or part == wanted), None)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _json(place: storage.Location) -> Any:
    text = storage.read_small(place)
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return {}


def _parent(place: storage.Location) -> storage.Location:
    def up(path: str) -> str:
        return path.rpartition("/")[0]

    return storage.Location(place.fs, up(place.path), up(place.uri), place.local, place.s3 or S3Section())
