"""Bring a model folder onto this node's disk: from ``s3://`` or from the Hugging Face hub, once per node.

    folder = from_s3("s3://models/llava")        # $ADAMLLM_MODEL_CACHE/llava-3f0c..., fetched if it is not there
    folder = from_hub("org/name@<40 hex>")

Replicas that start together wait for one download under a file lock. Only files that cannot carry code are fetched.
A folder appears under its name when everything is in it; an interrupted download continues with the missing files.
Nothing here runs unless a model specification asks for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from pyarrow import fs as pafs

from adamllm_ray.config import S3Section
from adamllm_ray.data import storage
from adamllm_ray.errors import ModelError, StorageError

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([0-9a-f]{40})")
_CHUNK = 16 << 20
_STREAMS = 4  # files at a time


def cache_folder() -> Path:
    """Where fetched models are kept on this node: $ADAMLLM_MODEL_CACHE, or the user's cache folder."""
    root = os.environ.get("ADAMLLM_MODEL_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "adamllm_ray" / "models"


def is_hub_id(spec: str) -> bool:
    """``org/name@<40 hex digits>``: a branch or tag could mean something else on another node."""
    return _HUB_ID.fullmatch(spec) is not None


def is_remote(spec: str) -> bool:
    """The model has to be fetched before this node can use it."""
    return spec.startswith("s3://") or is_hub_id(spec)


def model_files(place: storage.Location) -> list[pafs.FileInfo]:
    """Files of a model folder that are ever read: those matching `PATTERNS`, directly in the folder, by name."""
    found = place.fs.get_file_info(pafs.FileSelector(place.path, recursive=False, allow_not_found=True))
    named = [info for info in found if info.is_file and any(fnmatch(info.base_name, each) for each in PATTERNS)]
    return sorted((info for info in named if not info.base_name.startswith(".")), key=lambda info: info.base_name)


def from_s3(spec: str, s3: S3Section | None = None) -> Path:
    """Local copy of an ``s3://bucket/folder``. Another content there (sizes, times) is another copy here.

    Raises:
        ModelError: no model file there.
        StorageError: the object store or this node's disk fails; a started download is continued by the next call.
    """
    place = storage.resolve(spec, s3)
    with storage.storage_errors("fetch the model", spec):
        files = model_files(place)
        if not files:
            raise ModelError(f"no model at {spec}: there is no {' or '.join(PATTERNS[:2])} directly in that folder")
        state = repr([place.uri, *((info.base_name, info.size, info.mtime_ns) for info in files)])
        name = f"{Path(place.path).name}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
        with _made_once(name) as (target, partial):
            if partial is not None:
                with ThreadPoolExecutor(_STREAMS) as pool:
                    list(pool.map(lambda info: _copy(place.fs, info, partial), files))
    return target


def from_hub(spec: str) -> Path:
    """Local copy of ``org/name@<revision>``, by huggingface_hub (HF_TOKEN and HF_ENDPOINT are honoured).

    Raises:
        ModelError: the hub does not give it; carries what the hub said.
    """
    found = _HUB_ID.fullmatch(spec)
    if found is None:
        raise ModelError(f"{spec!r} does not pin a revision; give org/name@<40 hex digits>")
    repository, revision = found.groups()
    with _made_once(f"{repository.replace('/', '--')}-{revision}") as (target, partial):
        if partial is not None:
            _run_download(repository, revision, partial)
            shutil.rmtree(partial / ".cache", ignore_errors=True)
    return target


@contextmanager
def _made_once(name: str) -> Iterator[tuple[Path, Path | None]]:
    """(final folder, folder to fill or None if it is there). Filled folders get their name when the block ends well."""
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    target, partial = root / name, root / f".{name}.partial"
    with (root / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield target, None
            return
        partial.mkdir(exist_ok=True)
        yield target, partial
        partial.rename(target)


def _copy(fs: pafs.FileSystem, info: pafs.FileInfo, folder: Path) -> None:
    target = folder / info.base_name
    if target.is_file() and target.stat().st_size == info.size:
        return
    part = folder / f"{info.base_name}.part"
    with fs.open_input_stream(info.path) as source, part.open("wb") as sink:
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
        sink.flush()
        os.fsync(sink.fileno())
    if part.stat().st_size != info.size:
        raise StorageError(
            f"{info.path}: {part.stat().st_size} of {info.size} bytes arrived; run the same command again"
        )
    part.rename(target)


def _run_download(repository: str, revision: str, folder: Path) -> None:
    """In a process of its own: this one has told huggingface_hub to stay offline, which it reads only once."""
    command = [sys.executable, "-m", "adamllm_ray.models.fetch", repository, revision, str(folder)]
    online = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, env=online, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(
            f"cannot fetch {repository}@{revision} from the hub: {said[-1] if said else 'no reason given'}"
        )


def _download(repository: str, revision: str, folder: str) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(
        repository, revision=revision, local_dir=folder, allow_patterns=list(PATTERNS), ignore_patterns=["*/*"]
    )


if __name__ == "__main__":
    _download(*sys.argv[1:])
