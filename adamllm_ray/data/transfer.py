"""Whole folders to the run's storage and back: checkpoints, resharded checkpoints, exported models.

    upload(folder, place)                   every file below a local folder, to the same names below a place
    download(place, folder, names)          the named files, or all of them

On S3 through boto3's transfer manager: large files in parts, and parts and files sixteen at a time, each tried again
on its own. (Ray Train's own upload goes through pyarrow in one thread.) A file appears under its name when it is
whole; an upload that dies leaves parts that no reader sees, which a lifecycle rule of the bucket should expire. On a
disk that all nodes share, files are copied by a few threads.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adamllm_ray.data import s3, storage
from adamllm_ray.data.storage import Location

REQUESTS = 16  # of one process at a time; a node may have eight training workers
PART_BYTES = 16 << 20  # larger files go in parts of this size; S3's limit of 10,000 parts raises it by itself
COPIERS = 4


def files_below(folder: Path) -> list[str]:
    """Names of all files below a local folder, relative to it, sorted."""
    return [name for name, _ in storage.list_files(storage.resolve(str(folder)))]


def upload(folder: Path, place: Location, names: Iterable[str] | None = None) -> None:
    """Copy files below ``folder`` (all, or the named ones) to the same names below ``place``.

    Raises:
        OSError: a file could not be written; others may have been.
    """
    chosen = list(files_below(folder) if names is None else names)
    if place.local:
        _copy_all([(folder / name, Path(place.path, name)) for name in chosen])
        return
    with _transfers(place) as manager:
        bucket, prefix = s3.split(place.path)
        _wait([manager.upload(str(folder / name), bucket, _key(prefix, name)) for name in chosen])


def download(place: Location, folder: Path, names: Iterable[str] | None = None) -> None:
    """Copy files below ``place`` (all, or the named ones) to the same names below the local ``folder``.

    Raises:
        OSError: a file could not be read whole; others may be there.
        StorageError: a name leads out of the folder. A bucket may have a key "../x": nothing is copied then.
    """
    found = [name for name, _ in storage.list_files(place)] if names is None else names
    chosen = [storage.inside(name, place.uri) for name in found]
    if place.local:
        _copy_all([(Path(place.path, name), folder / name) for name in chosen])
        return
    for name in chosen:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with _transfers(place) as manager:
        bucket, prefix = s3.split(place.path)
        _wait([manager.download(bucket, _key(prefix, name), str(folder / name)) for name in chosen])


def _key(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


def _wait(futures: list[Any]) -> None:
    for future in futures:
        future.result()  # the first error leaves the block of the manager, which cancels what is under way


@contextmanager
def _transfers(place: Location) -> Iterator[Any]:
    """boto3's transfer manager for a place, with its errors as OSError."""
    from s3transfer.exceptions import RetriesExceededError
    from s3transfer.manager import TransferConfig, TransferManager

    options = TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_request_concurrency=REQUESTS
    )
    with s3.os_errors(f"s3://{place.path}"):
        try:
            with TransferManager(s3.client(place.s3), options) as manager:
                yield manager
        except RetriesExceededError as error:
            raise OSError(errno.EIO, f"{error.last_exception or error}") from error


def _copy_all(pairs: list[tuple[Path, Path]]) -> None:
    for target in {target.parent for _, target in pairs}:
        target.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(COPIERS) as pool:
        list(pool.map(lambda pair: shutil.copyfile(*pair), pairs))
