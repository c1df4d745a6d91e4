"""Your own questions: a Parquet or JSONL file with one row per question.

Columns: ``image`` (encoded bytes, a ``{bytes, path}`` struct, or a path relative to the file), ``question``,
``answer``, ``type``; optional ``id``, ``kind`` ("open" or "closed"; yes/no answers are closed by default), ``choices``
(list of strings) and ``meta``. Question texts are asked as they are, so put the choices into the text as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from adamllm_ray.config import S3Section
from adamllm_ray.data import storage
from adamllm_ray.data.record import record_id
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError
from adamllm_ray.evaluation.tasks import Kind, Question

REQUIRED = ("image", "question", "answer")
MAX_LINE_BYTES = 64 << 20
ROWS_PER_BATCH = 256


class RowError(Exception):
    """A row cannot be used; carries the verdict. Does not leave this module."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        self.verdict = verdict
        super().__init__(detail)


def table_questions(path: str, s3: S3Section | None = None) -> Iterator[Question]:
    """Questions of a .parquet or .jsonl file, local or ``s3://``.

    Raises:
        SourceError: the file cannot be opened, or lacks a required column.
    """
    if not path.endswith((".parquet", ".jsonl")):
        raise SourceError(f"evaluation.task: {path} is neither a .parquet nor a .jsonl file, nor the word 'pocket'")
    place = storage.resolve(path, s3)
    fs, inner = place.fs, place.path
    try:
        rows = _parquet_rows(fs, inner) if inner.endswith(".parquet") else _json_rows(fs, inner)
        for number, row in enumerate(rows):
            yield _question(row, number, fs, str(PurePosixPath(inner).parent))
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"evaluation.task: cannot read {path}: {error}") from error


def _parquet_rows(fs: pafs.FileSystem, path: str) -> Iterator[dict[str, Any]]:
    with fs.open_input_file(path) as file:
        table = pq.ParquetFile(file)
        missing = [name for name in REQUIRED if name not in table.schema_arrow.names]
        if missing:
            raise SourceError(f"evaluation.task: {path} lacks the column(s) {', '.join(missing)}")
        for batch in table.iter_batches(ROWS_PER_BATCH):
            yield from batch.to_pylist()


def _json_rows(fs: pafs.FileSystem, path: str) -> Iterator[dict[str, Any]]:
    """One dictionary per line; a line that is not one becomes ``{"_problem": ...}``."""
    with fs.open_input_stream(path) as raw:
        for line in _lines(raw):
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else {"_problem": "the line is not a JSON object"}
            except (ValueError, RecursionError) as error:
                yield {"_problem": f"not JSON: {error}"}


def _lines(raw: Any) -> Iterator[bytes]:
    rest = b""
    while chunk := raw.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
        if len(rest) > MAX_LINE_BYTES:
            raise SourceError(f"evaluation.task: a line is longer than {MAX_LINE_BYTES} bytes; this is not JSONL")
    if rest.strip():
        yield rest


def _question(row: dict[str, Any], number: int, fs: pafs.FileSystem, folder: str) -> Question:
    """A row as a question; a row that cannot be read becomes one with a verdict."""
    name = row.get("id")
    try:
        if "_problem" in row:
            raise RowError(Verdict.ROW_UNREADABLE, row["_problem"])
        question, answer = _text(row, "question"), _text(row, "answer")
        kind = row.get("kind") or ("closed" if answer.strip(" .").lower() in ("yes", "no") else "open")
        if kind not in ("open", "closed"):
            raise RowError(Verdict.ROW_UNREADABLE, f"kind is {kind!r}, expected 'open' or 'closed'")
        image = _image(row.get("image"), fs, folder)
        key = str(name) if name is not None else record_id(image, question, f"row {number}")
        meta = row.get("meta")
        meta = meta if meta is None or isinstance(meta, str) else json.dumps(meta, default=str)
        return Question(
            key, image, question, answer, str(row.get("type") or kind), cast(Kind, kind), _choices(row, answer), meta
        )
    except RowError as error:
        key = str(name) if name is not None else f"row {number}"
        type_ = str(row.get("type") or "unreadable")
        return Question(key, None, "", "", type_, "open", verdict=error.verdict, verdict_detail=str(error)[:500])


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise RowError(Verdict.ROW_UNREADABLE, f"'{name}' is {'missing' if value is None else 'not a text'}")
    return str(value)


def _choices(row: dict[str, Any], answer: str) -> tuple[str, ...] | None:
    value = row.get("choices")
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RowError(Verdict.ROW_UNREADABLE, "'choices' is not a list of texts")
    if answer.casefold().strip() not in {item.casefold().strip() for item in value}:
        raise RowError(Verdict.ROW_UNREADABLE, f"the answer {answer[:80]!r} is not one of the choices")
    return tuple(value)


def _image(value: Any, fs: pafs.FileSystem, folder: str) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise RowError(Verdict.IMAGE_MISSING, "no image")
    relative = PurePosixPath(value)
    if relative.is_absolute() or ".." in relative.parts or "://" in value:
        raise RowError(Verdict.IMAGE_MISSING, f"{value[:200]!r} is not inside the folder of the task file")
    try:
        with fs.open_input_stream(f"{folder}/{relative}", compression=None) as file:
            data: bytes = file.read()
    except (OSError, ValueError) as error:
        raise RowError(Verdict.IMAGE_MISSING, str(error)) from error
    return data
