"""Checkpoints of a training run that prove that they are whole.

::

    train/ray/train/step-00000100-1f3a.../    one folder per checkpoint, merged by Ray Train from all workers
    ├── state/*                               DeepSpeed's shards
    ├── worker-<rank>.json                    the worker's own notes (refused examples; worker 0: losses so far)
    └── complete.json                         step, number of workers, size and sha256 of every file

A worker that dies while saving leaves a folder whose files do not match ``complete.json``, or without one; a flipped
byte on disk shows the same way. `newest_valid` looks at storage itself, so it also finds a checkpoint that was
written completely but not yet entered in Ray Train's books when the driver died.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from adamllm_ray.data import storage
from adamllm_ray.data.storage import Location

COMPLETE = "complete.json"
PREFIX = "step-"
RAYS_BOOKS = "checkpoint_manager_snapshot.json"  # Ray Train's own list of the checkpoints beside it


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint whose files are all there, as they were written."""

    name: str
    step: int
    world: int


def snapshot_name(step: int) -> str:
    """A folder name that sorts by step and is never used twice (a step can be saved again after a restart)."""
    return f"{PREFIX}{step:08d}-{uuid.uuid4().hex[:12]}"


def sign_files(folder: Path) -> list[dict[str, Any]]:
    """{path, bytes, sha256} of every file below a local folder."""
    place = storage.resolve(str(folder))
    return [
        {"path": path, "bytes": size, "sha256": storage.sha256(place.child(path))}
        for path, size in storage.list_files(place)
    ]


def write_complete(folder: Path, step: int, world: int, files: list[dict[str, Any]]) -> None:
    """Write the seal over the files of all workers; the folder is the one of worker 0."""
    tree = {"step": step, "world": world, "files": sorted(files, key=lambda entry: entry["path"])}
    (folder / COMPLETE).write_text(json.dumps(tree), "utf-8")


def newest_valid(runs: Location) -> tuple[Snapshot | None, list[str]]:
    """The valid checkpoint with the most steps, and one sentence for each newer one that was passed over."""
    problems: list[str] = []
    for name in _names(runs):
        snapshot, problem = examine(runs.child(name))
        if snapshot is not None:
            return snapshot, problems
        problems.append(f"checkpoint {name} is not used: {problem}")
    return None, problems


def examine(place: Location) -> tuple[Snapshot | None, str]:
    """The checkpoint in a folder if it is whole, otherwise None and what is wrong with it."""
    text = storage.read_small(place.child(COMPLETE))
    if text is None:
        return None, f"no {COMPLETE}, so it was not written to its end"
    try:
        tree = json.loads(text)
        wanted = {entry["path"]: (entry["bytes"], entry["sha256"]) for entry in tree["files"]}
        snapshot = Snapshot(place.path.rpartition("/")[2], int(tree["step"]), int(tree["world"]))
    except (ValueError, KeyError, TypeError) as error:
        return None, f"{COMPLETE} is damaged ({type(error).__name__})"
    found = dict(storage.list_files(place))
    for path, (size, _) in wanted.items():
        if found.get(path) != size:
            return None, f"{path} has {found.get(path, 'no')} bytes, {size} were written"
    with ThreadPoolExecutor(4) as pool:
        digests = dict(zip(wanted, pool.map(lambda path: storage.sha256(place.child(path)), wanted), strict=True))
    changed = [path for path, (_, digest) in wanted.items() if digests[path] != digest]
    return (None, f"{changed[0]} changed since it was written") if changed else (snapshot, "")


def drop_stale_books(runs: Location) -> None:
    """Delete Ray Train's list of checkpoints when one that it names is gone: Ray refuses to start with such a list.

    Nothing depends on it: `newest_valid` looks at the folders themselves.
    """
    text = storage.read_small(runs.child(RAYS_BOOKS)) or b""
    named = set(re.findall(rb'"checkpoint_dir_name":\s*"([^"]+)"', text))
    if named - {name.encode() for name in _names(runs)}:
        runs.fs.delete_file(runs.child(RAYS_BOOKS).path)


def _names(runs: Location) -> Iterator[str]:
    """Names of the checkpoint folders, the newest step first."""
    selector = pafs.FileSelector(runs.path, allow_not_found=True)
    names = [info.base_name for info in runs.fs.get_file_info(selector) if info.type == pafs.FileType.Directory]
    yield from sorted((name for name in names if name.startswith(PREFIX)), reverse=True)
