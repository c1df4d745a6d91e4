"""Readers: each turns a kind of data set into a stream of raw image-caption pairs, in a fixed order.

* sharegpt  a .json list or .jsonl file beside a folder of images. Per record ``images: [file]`` (or ``image``) and
            ``messages: [{role, content}]`` or ``conversations: [{from, value}]``; the first assistant text is the
            caption. ``{"image": ..., "caption": ...}`` is understood too.
* parquet   one file or a folder; image as bytes, ``{bytes, path}`` struct, path or URI (``data.columns``).
* pocket    the satellite chips that ship with the package.

A record that cannot be read becomes a pair with a verdict, so every record of the source is a row of the run. Only
when the source *as a whole* cannot be read is it a SourceError. Image paths are resolved inside the image folder
and nowhere else: no URL is fetched, no ``..`` or link leads out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from adamllm_ray.config import Columns, DataSection
from adamllm_ray.data import storage
from adamllm_ray.data.jsonfile import Damaged, json_records
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused, SourceError

PARQUET_BATCH_ROWS = 32
MAX_META_BYTES = 64 << 10  # of one binary value; longer ones are left out of meta, their length is noted
TAIL_BYTES = 64 << 10
POCKET_MODULES = ("domain", "chips", "language", "regions")  # what decides the chips and their captions
_USERS, _ASSISTANTS = {"user", "human"}, {"assistant", "gpt", "model"}
_PAIR_FIELDS = {"images", "image", "messages", "conversations", "caption"}


@dataclass(frozen=True, slots=True)
class RawPair:
    """One record of a source, not yet checked.

    ``load`` returns the encoded image or raises ImageRefused; it is None when ``verdict`` is already known.
    """

    source: str
    key: str
    load: Callable[[], bytes] | None = None
    caption: str = ""
    caption_instruction: str | None = None
    meta: str | None = None
    verdict: Verdict | None = None
    detail: str | None = None


def read_pairs(data: DataSection) -> Iterator[RawPair]:
    """All pairs of the configured source, in the source's order, at most ``data.limit``.

    Raises:
        SourceError: the source does not exist, is of another kind, or is damaged beyond single records.
    """
    if data.format == "sharegpt":
        return islice(_sharegpt(data), data.limit)
    if data.format == "parquet":
        return islice(_parquet(data), data.limit)
    return _pocket(data.limit)


def source_fingerprint(data: DataSection) -> dict[str, Any]:
    """What tells one state of the source from another: content of the JSON file; names, sizes and footers
    of Parquet files.

    Image files are not read for it: replacing an image in place is noticed by ``--force-new`` only.
    """
    if data.format == "sharegpt":
        place = _sharegpt_file(data.path)
        with _source_errors(place.uri):
            return {"file": place.uri.rpartition("/")[2], "sha256": storage.sha256(place)}
    if data.format == "parquet":
        parts = [(name, size, _tail_digest(place, size)) for place, name, size in _parquet_parts(data.path)]
        return {"files": len(parts), "sha256": hashlib.sha256(json.dumps(parts).encode()).hexdigest()}
    from adamllm_ray.data.run import code_version

    return {"pocket": code_version(*(f"adamllm_ray.pocket.{name}" for name in POCKET_MODULES))}


class ImageFolder:
    """The folder that image paths are relative to, on disk or S3. Nothing outside it is ever opened."""

    def __init__(self, uri: str, max_bytes: int) -> None:
        self._place = storage.resolve(uri)
        self._max_bytes = max_bytes
        with _source_errors(self._place.uri):
            if self._place.fs.get_file_info(self._place.path).type != pafs.FileType.Directory:
                raise SourceError(f"data.image_folder: {self._place.uri} is not a folder")
        self._root = os.path.realpath(self._place.path) if self._place.local else self._place.path

    def read(self, name: str) -> bytes:
        """Content of the image ``name``: a relative path, or an absolute path or URI that lies inside the folder.

        Raises:
            ImageRefused: IMAGE_MISSING (no such regular file inside the folder) or IMAGE_TOO_MANY_BYTES.
        """
        shown = name[:200]
        if not name or "\0" in name:
            raise ImageRefused(Verdict.IMAGE_MISSING, f"not a file name: {shown!r}")
        if name.startswith(self._place.uri + "/"):
            name = name[len(self._place.uri) + 1 :]
        if "://" in name or name.startswith("data:"):
            raise ImageRefused(Verdict.IMAGE_MISSING, f"URLs are not fetched, only files in the image folder: {shown}")
        try:
            return self._read_local(name, shown) if self._place.local else self._read_remote(name, shown)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            raise ImageRefused(Verdict.IMAGE_MISSING, f"{reason}: {shown}") from error

    def _read_local(self, name: str, shown: str) -> bytes:
        path = os.path.realpath(os.path.join(self._root, name))  # noqa: PTH118 - links resolved, then compared
        if not path.startswith(self._root.rstrip("/") + "/"):
            raise ImageRefused(Verdict.IMAGE_MISSING, f"outside the image folder: {shown}")
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)  # a pipe must not block us
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ImageRefused(Verdict.IMAGE_MISSING, f"not a regular file: {shown}")
            self._refuse_large(status.st_size, shown)
            return file.read(self._max_bytes)

    def _read_remote(self, name: str, shown: str) -> bytes:
        if name.startswith("/") or ".." in name.split("/"):
            raise ImageRefused(Verdict.IMAGE_MISSING, f"outside the image folder: {shown}")
        place = self._place.child(name)
        info = place.fs.get_file_info(place.path)
        if info.type != pafs.FileType.File:
            raise ImageRefused(Verdict.IMAGE_MISSING, f"no such object: {shown}")
        self._refuse_large(info.size, shown)
        with place.fs.open_input_stream(place.path) as stream:
            data: bytes = stream.read(self._max_bytes)
        return data

    def _refuse_large(self, size: int, shown: str) -> None:
        if size > self._max_bytes:
            raise ImageRefused(Verdict.IMAGE_TOO_MANY_BYTES, f"{size} bytes, limit {self._max_bytes}: {shown}")


# ShareGPT ----------------------------------------------------------------------------------------------------------


def _sharegpt(data: DataSection) -> Iterator[RawPair]:
    place = _sharegpt_file(data.path)
    folder = ImageFolder(data.image_folder or place.uri.rpartition("/")[0] or "/", data.images.max_bytes)
    source = place.uri.rpartition("/")[2]
    with _source_errors(place.uri):
        for key, record in json_records(place):
            yield _sharegpt_pair(source, key, record, folder)


def _sharegpt_file(path: str) -> storage.Location:
    place = _existing(path)
    if place.fs.get_file_info(place.path).type == pafs.FileType.File:
        return place
    found = place.fs.get_file_info(pafs.FileSelector(place.path))
    names = sorted(info.base_name for info in found if info.is_file and info.extension in ("json", "jsonl", "ndjson"))
    if len(names) != 1:
        listed = ", ".join(names[:5]) or "none"
        raise SourceError(
            f"data.path: {place.uri} must hold exactly one .json or .jsonl file (found: {listed}); name it"
        )
    return place.child(names[0])


def _sharegpt_pair(source: str, key: str, record: Any, folder: ImageFolder) -> RawPair:
    if isinstance(record, Damaged):
        meta = json.dumps({"text": record.text})
        return RawPair(source, key, meta=meta, verdict=Verdict.ROW_UNREADABLE, detail=record.reason)
    if not isinstance(record, dict):
        detail = f"expected an object, found {_kind(record)}"
        meta = json.dumps({"value": record})
        return RawPair(source, key, meta=meta, verdict=Verdict.ROW_UNREADABLE, detail=detail)
    rest = {name: value for name, value in record.items() if name not in _PAIR_FIELDS}
    try:
        image, remark = _image_name(record)
        caption, instruction = _caption(record)
    except _Unreadable as error:
        return RawPair(source, key, meta=json.dumps(record), verdict=Verdict.ROW_UNREADABLE, detail=str(error))
    others = json.dumps(rest) if rest else None
    return RawPair(source, key, lambda: folder.read(image), caption, instruction, others, detail=remark)


def _image_name(record: dict[str, Any]) -> tuple[str, str | None]:
    """(path of the first image, remark when there are more)."""
    value = record.get("images", record.get("image"))
    images = value if isinstance(value, list) else [value]
    first = images[0] if images else None
    name = first.get("path") if isinstance(first, dict) else first
    if not isinstance(name, str):
        raise _Unreadable("no image: expected 'images': [\"file.jpg\"]")
    return name, f"first of {len(images)} images" if len(images) > 1 else None


def _caption(record: dict[str, Any]) -> tuple[str, str | None]:
    """(first assistant text, the user's request before it)."""
    messages = record.get("messages", record.get("conversations"))
    if messages is None and isinstance(record.get("caption"), str):
        return record["caption"], None
    if not isinstance(messages, list):
        raise _Unreadable("no caption: expected 'messages' or 'conversations' (a list), or 'caption' (a text)")
    request: str | None = None
    for message in messages:
        role, text = _message(message)
        if role in _ASSISTANTS:
            return text, request
        if role in _USERS and request is None:
            request = text.replace("<image>", "").strip() or None
    return "", request


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise _Unreadable(f"a message is not an object but {_kind(message)}")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # [{"type": "image"}, {"type": "text", "text": ...}]
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(role, str) or not isinstance(content, str):
        raise _Unreadable("a message needs a role ('role' or 'from') and a text ('content' or 'value')")
    return role, content


# Parquet -----------------------------------------------------------------------------------------------------------


def _parquet(data: DataSection) -> Iterator[RawPair]:
    parts = list(_parquet_parts(data.path))
    folder = ImageFolder(data.image_folder or _parent(_existing(data.path), parts), data.images.max_bytes)
    for place, name, _ in parts:
        with _source_errors(place.uri), place.fs.open_input_file(place.path) as stream:
            file = pq.ParquetFile(stream)
            _check_columns(file.schema_arrow, data.columns, place.uri)
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for row in _rows(batch, data.columns):
                    yield _parquet_pair(name, str(number), row, data.columns, folder)
                    number += 1


def _parquet_parts(path: str) -> list[tuple[storage.Location, str, int]]:
    """(place, name relative to ``path``, bytes) of every Parquet file, sorted by name."""
    place = _existing(path)
    info = place.fs.get_file_info(place.path)
    if info.type == pafs.FileType.File:
        return [(place, info.base_name, info.size)]
    files = [(name, size) for name, size in storage.list_files(place) if name.endswith((".parquet", ".pq"))]
    if not files:
        raise SourceError(f"data.path: no .parquet file in {place.uri}")
    return [(place.child(name), name, size) for name, size in files]


def _tail_digest(place: storage.Location, size: int) -> str:
    """Digest of the file's end, where Parquet keeps offsets and statistics of all of it."""
    with _source_errors(place.uri), place.fs.open_input_file(place.path) as file:
        file.seek(max(0, size - TAIL_BYTES))
        return hashlib.sha256(file.read(TAIL_BYTES)).hexdigest()


def _parent(place: storage.Location, parts: list[tuple[storage.Location, str, int]]) -> str:
    """Where image paths of a Parquet source start: its folder."""
    return place.uri.rpartition("/")[0] or "/" if parts[0][0] == place else place.uri


def _check_columns(schema: pa.Schema, columns: Columns, where: str) -> None:
    for option, name in (("image", columns.image), ("caption", columns.caption), ("key", columns.key)):
        if name is not None and name not in schema.names:
            raise SourceError(
                f"{where} has no column '{name}' (data.columns.{option}); it has: {', '.join(schema.names[:20])}"
            )
    kind = schema.field(columns.caption).type
    text = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_string_view(text)):
        raise SourceError(f"{where}: column '{columns.caption}' holds {kind}, not texts (data.columns.caption)")


def _rows(batch: pa.RecordBatch, columns: Columns) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries. A text that is not UTF-8 gets replacement characters instead of ending the job."""
    for index in range(batch.num_rows):
        row = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                row[name] = column[index].as_py()
            except UnicodeDecodeError as error:
                row[name] = bytes(error.object).decode("utf-8", "replace")
        yield row


def _parquet_pair(source: str, key: str, row: dict[str, Any], columns: Columns, folder: ImageFolder) -> RawPair:
    image, caption = row.pop(columns.image), row.pop(columns.caption)
    if columns.key is not None:
        key = str(row.pop(columns.key, None))
    meta = json.dumps(_plain(row))
    if isinstance(image, dict):
        image = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    if isinstance(image, bytes):
        return RawPair(source, key, lambda: image, caption or "", None, meta)
    if isinstance(image, str):
        return RawPair(source, key, lambda: folder.read(image), caption or "", None, meta)
    detail = "the image is null" if image is None else f"the image is {_kind(image)}, not bytes or a path"
    return RawPair(source, key, None, caption or "", None, meta, Verdict.IMAGE_MISSING, detail)


def _plain(value: Any) -> Any:
    """JSON data from whatever a Parquet column may hold."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode() if len(value) <= MAX_META_BYTES else {"omitted_bytes": len(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


# Pocket and shared pieces ------------------------------------------------------------------------------------------


def _pocket(limit: int | None) -> Iterator[RawPair]:
    from adamllm_ray.pocket.domain import training_pairs

    for pair in training_pairs(limit):
        meta = pair.meta if isinstance(pair.meta, str) else json.dumps(pair.meta)
        yield RawPair("pocket", pair.key, _constant(pair.image_bytes), pair.caption, None, meta)


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _existing(path: str) -> storage.Location:
    if not path:
        raise SourceError("data.path is empty: name the file or folder with your images and captions")
    place = storage.resolve(path)
    with _source_errors(place.uri):
        if place.fs.get_file_info(place.path).type == pafs.FileType.NotFound:
            raise SourceError(f"data.path: {place.uri} does not exist")
    return place


@contextmanager
def _source_errors(where: str) -> Iterator[None]:
    """Turn I/O errors of reading the source into a SourceError."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"cannot read {where}: {error}") from error


class _Unreadable(ValueError):
    """A single record is not what it should be; becomes the verdict row_unreadable."""


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
