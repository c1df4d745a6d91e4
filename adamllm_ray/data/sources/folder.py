"""The folder that image paths of a source are relative to: nothing outside it is ever opened."""

from __future__ import annotations

import os
import stat

from pyarrow import fs as pafs

from adamllm_ray.config import S3Section
from adamllm_ray.data import s3, storage
from adamllm_ray.data.sources.places import source_errors, unreachable
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused, SourceError


class ImageFolder:
    """The folder that image paths are relative to, on disk or S3. Nothing outside it is ever opened."""

    def __init__(self, uri: str, max_bytes: int, s3_options: S3Section | None = None) -> None:
        self._place = storage.resolve(uri, s3_options)
        self._max_bytes = max_bytes
        with source_errors(self._place.uri):
            if self._place.fs.get_file_info(self._place.path).type != pafs.FileType.Directory:
                raise SourceError(f"data.image_folder: {self._place.uri} is not a folder")
        self._root = os.path.realpath(self._place.path) if self._place.local else self._place.path

    def read(self, name: str) -> bytes:
        """Content of the image ``name``: a relative path, or an absolute path or URI that lies inside the folder.

        Raises:
            ImageRefused: IMAGE_MISSING (no such regular file inside the folder) or IMAGE_TOO_MANY_BYTES.
            StorageError: the object store does not answer, or refuses the credentials.
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
        """One request. Only an object that is not there is a verdict: a store in trouble must stop the stage."""
        if name.startswith("/") or ".." in name.split("/"):
            raise ImageRefused(Verdict.IMAGE_MISSING, f"outside the image folder: {shown}")
        try:
            return s3.fetch(f"{self._place.path}/{name}", self._place.s3, self._max_bytes)
        except s3.TooManyBytes as large:
            self._refuse_large(large.size, shown)
            raise
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreachable(error, self._place.uri) from error

    def _refuse_large(self, size: int, shown: str) -> None:
        if size > self._max_bytes:
            raise ImageRefused(Verdict.IMAGE_TOO_MANY_BYTES, f"{size} bytes, limit {self._max_bytes}: {shown}")
