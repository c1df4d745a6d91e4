"""Files of a source: finding them, telling one state of them from another, and what their errors mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from adamllm_ray.config import DataSection
from adamllm_ray.data import s3, storage
from adamllm_ray.errors import SourceError, StorageError, foreign

END_BYTES = 64 << 10  # read from both ends of a file for its fingerprint

Part = tuple[storage.Location, str, int]  # place, name relative to data.path, bytes


@contextmanager
def source_errors(where: str) -> Iterator[None]:
    """I/O errors of reading the source become a SourceError, or a StorageError when an object store is in trouble."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if where.startswith("s3://") and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise unreachable(error, where) from error
        raise SourceError(f"cannot read {foreign(where)}: {foreign(error)}") from error


def unreachable(error: OSError, where: str) -> StorageError:
    """What to tell when the object store refuses or does not answer: the same command can be run again."""
    remedy = (
        "renew the credentials (a store also answers so for an object that is not there, when they may not list)"
        if s3.denied(error)
        else "see that the storage can be reached"
    )
    reason = foreign(error.strerror or error)
    return StorageError(f"cannot read {foreign(where)}: {reason}; {remedy}, then run the same command again")


def existing(data: DataSection) -> storage.Location:
    """The place of ``data.path``. Raises SourceError when it is empty or there is nothing."""
    if not data.path:
        raise SourceError("data.path is empty: name the file or folder with your images and captions")
    place = storage.resolve(data.path, data.s3)
    with source_errors(place.uri):
        if place.fs.get_file_info(place.path).type == pafs.FileType.NotFound:
            raise SourceError(f"data.path: {place.uri} does not exist")
    return place


def parts(data: DataSection, suffixes: tuple[str, ...]) -> list[Part]:
    """The file ``data.path``, or every file below that folder with one of the suffixes, sorted by name."""
    place = existing(data)
    with source_errors(place.uri):
        info = place.fs.get_file_info(place.path)
        if info.type == pafs.FileType.File:
            return [(place, info.base_name, info.size)]
        files = [(name, size) for name, size in storage.list_files(place) if name.endswith(suffixes)]
    if not files:
        raise SourceError(f"data.path: no {suffixes[0]} file in {place.uri}")
    return [(place.child(name), name, size) for name, size in files]


def files_digest(found: list[Part]) -> dict[str, Any]:
    """Number of files and a digest over their names, sizes and both ends."""
    ends = [(name, size, _ends(place, size)) for place, name, size in found]
    return {"files": len(ends), "sha256": hashlib.sha256(json.dumps(ends).encode()).hexdigest()}


def _ends(place: storage.Location, size: int) -> str:
    with source_errors(place.uri), place.fs.open_input_file(place.path) as file:
        digest = hashlib.sha256(file.read(END_BYTES))
        if size > END_BYTES:
            file.seek(max(END_BYTES, size - END_BYTES))
            digest.update(file.read(END_BYTES))
    return digest.hexdigest()
