"""Where bytes live: local disk or S3 behind one pyarrow filesystem, and what its errors mean to a user.

    location = resolve("s3://bucket/runs/first")      # or a local path
    with storage_errors("write the manifest", location.uri):
        write_small(location, "manifest.json", data)

``data.s3`` and ``run.s3`` name endpoint and region; AWS_ENDPOINT_URL, AWS_REGION and the usual credential sources are
honoured without them.
Small files appear whole or not at all: temporary file and rename on disk, a single upload on S3.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as pafs

from adamllm_ray.config import S3Section
from adamllm_ray.data import s3
from adamllm_ray.errors import ConfigError, StorageError

MAX_PATH_CHARS = 4096
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a filesystem. ``path`` is inside ``fs``; ``uri`` is what a user or Ray would write."""

    fs: pafs.FileSystem
    path: str
    uri: str
    local: bool
    s3: S3Section = S3Section()

    def child(self, name: str) -> Location:
        """The place ``name`` (which may hold slashes) below this one."""
        return Location(self.fs, f"{self.path}/{name}", f"{self.uri}/{name}", self.local, self.s3)


def resolve(uri: str, s3_options: S3Section | None = None) -> Location:
    """Filesystem and path of a local path, ``file://`` or ``s3://`` URI; ``s3_options`` say how to reach the latter.

    Raises:
        ConfigError: another scheme, an empty path, a NUL byte, an over-long path, a lone surrogate.
        StorageError: the S3 client cannot be set up.
    """
    if not _writable(uri) or len(uri) > MAX_PATH_CHARS:
        raise ConfigError(f"not a usable path: {uri[:80]!r}; give a local path or s3://bucket/prefix")
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "s3":
        path = rest.strip("/")
        if not path:
            raise ConfigError(f"{uri!r} names no bucket; give s3://bucket/prefix")
        bucket, options = path.split("/")[0], s3_options or S3Section()
        if not _BUCKET.fullmatch(bucket):  # "key:secret@bucket", say; it is not repeated here
            raise ConfigError("an s3:// path must start with the name of a bucket; keys come from the environment")
        with storage_errors("reach the object store", f"s3://{bucket}"):
            return Location(s3.filesystem(bucket, options), path, f"s3://{path}", False, options)
    if separator and scheme != "file":
        raise ConfigError(
            f"{uri!r}: storage of kind '{scheme}' is not supported; give a local path or s3://bucket/prefix"
        )
    path = os.path.abspath(os.path.expanduser(rest if separator else uri))  # noqa: PTH100, PTH111 - keeps links as named
    return Location(pafs.LocalFileSystem(), path, path, True)


def inside(name: str, where: str) -> str:
    """``name`` of a file below the folder ``where``, as some list gave it: the keys of a bucket, a manifest, a seal.

    Raises:
        StorageError: it is absolute or has a part "..": it would lead out of the folder.
    """
    if not _writable(name) or name.startswith("/") or ".." in name.split("/"):
        raise StorageError(f"{where}: {name[:100]!r} is not the name of a file in this folder; nothing was copied")
    return name


def _writable(path: str) -> bool:
    """Whether a file system can have such a name: not empty, no NUL byte, nothing that UTF-8 has no bytes for."""
    return bool(path) and "\0" not in path and not any("\ud800" <= character <= "\udfff" for character in path)


@contextmanager
def storage_errors(action: str, where: str) -> Iterator[None]:
    """Turn operating-system and Arrow I/O errors of the block into a StorageError that says what to do.

    Put it around work on the *run folder* only: an unreadable source is a SourceError or a verdict.
    """
    try:
        yield
    except OSError as error:  # pyarrow's ArrowIOError is OSError
        raise StorageError(_advice(error, action, where)) from error
    except pa.ArrowException as error:
        raise StorageError(f"cannot {action} at {where}: {error}") from error


_RESUME = "then run the same command again: it continues where it stopped"


def _advice(error: OSError, action: str, where: str) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left to {action} at {where}: free space there (df -h shows how much is missing), {_RESUME}."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) or (where.startswith("s3://") and s3.denied(error)):
        remedy = "renew the credentials" if where.startswith("s3://") else "make it writable"
        return f"no permission to {action} at {where} ({reason}): {remedy}, or choose another run.output; {_RESUME}."
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return f"cannot {action} at {where} ({reason}): choose another run.output."
    return f"cannot {action} at {where} ({reason}): see that the storage can be reached, {_RESUME}."


def make_folder(place: Location) -> None:
    """Create a folder and its parents. Nothing to do on S3, where folders are only prefixes."""
    if place.local:
        place.fs.create_dir(place.path, recursive=True)


def write_small(place: Location, data: bytes, *, content_type: str | None = None) -> None:
    """Write a small file so that a reader sees the old content or the new one, never a part.

    ``content_type``: what S3 tells a browser that opens it.
    """
    if not place.local:
        metadata = {"Content-Type": content_type} if content_type else None
        with place.fs.open_output_stream(
            place.path, metadata=metadata
        ) as sink:  # S3 shows an object only when its upload is complete
            sink.write(data)
        return
    target = Path(place.path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read_small(place: Location) -> bytes | None:
    """Content of a small file, or None when there is no such file."""
    if place.fs.get_file_info(place.path).type != pafs.FileType.File:
        return None
    with place.fs.open_input_stream(place.path) as source:
        data: bytes = source.read()
    return data


def list_files(place: Location) -> list[tuple[str, int]]:
    """(path relative to ``place``, bytes) of every file below it, sorted; hidden temporary files are left out."""
    if place.local:
        selector = pafs.FileSelector(place.path, recursive=True, allow_not_found=True)
        prefix = len(place.path) + 1
        found = [(info.path[prefix:], info.size) for info in place.fs.get_file_info(selector) if info.is_file]
    else:
        found = list(s3.list_objects(place.path, place.s3))
    return sorted((path, size) for path, size in found if not path.rpartition("/")[2].startswith("."))


def new_files(place: Location, known: Callable[[str], bool]) -> Iterator[tuple[str, float]]:
    """(name, when it was written in seconds since 1970) of each file in a folder that is not ``known`` by its name.

    One at a time and in no order: the memory that it takes does not grow with the folder. A folder that is not there
    has no files.
    """
    if not place.local:
        yield from ((name, moment) for name, moment in s3.list_times(place.path, place.s3) if not known(name))
        return
    try:
        entries = os.scandir(place.path)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if not known(entry.name) and entry.is_file():
                with suppress(FileNotFoundError):  # renamed meanwhile
                    yield entry.name, entry.stat().st_mtime


def sha256(place: Location) -> str:
    """Hex digest of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with place.fs.open_input_stream(place.path) as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def move_folder(source: Location, target: Location) -> None:
    """Rename a folder; on S3, where that does not exist, move its objects one by one."""
    if source.local:
        os.rename(source.path, target.path)  # noqa: PTH104
        return
    for path, _ in list_files(source):
        source.fs.move(source.child(path).path, target.child(path).path)


def remove_folder(place: Location) -> None:
    """Delete a folder with everything in it; fine when it does not exist."""
    if place.local:
        shutil.rmtree(place.path, ignore_errors=False) if os.path.isdir(place.path) else None  # noqa: PTH112
    elif list_files(place):
        place.fs.delete_dir(place.path)
