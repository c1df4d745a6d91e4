"""Checkpoints of a training run that prove that they are whole.

::

    train/ray/train/step-00000100-1f3a.../    one folder per checkpoint, written by all workers (see `checkpoints`)
    ├── state/*                               DeepSpeed's shards
    ├── worker-<rank>.json                    the worker's own notes (refused examples; worker 0: losses so far)
    └── complete.json                         step, number of workers, size and sha256 of every file; written last

A worker that dies while saving leaves a folder without ``complete.json``, a death while an old one is deleted one
whose files do not match it; a flipped byte on disk shows the same way. Storage itself is looked at, so a checkpoint is
also found when it was written completely but not yet entered in Ray Train's books. DeepSpeed's own pointer to the
newest checkpoint (its file ``latest``) is not written at all.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs as pafs

from adamllm_ray.data import storage
from adamllm_ray.data.storage import Location
from adamllm_ray.errors import StorageError, TrainingError

COMPLETE = "complete.json"
PREFIX = "step-"
HASHERS = 4  # threads of a worker
RAYS_BOOKS = "checkpoint_manager_snapshot.json"  # Ray Train's own list of the checkpoints beside it
_OWN_FILE = re.compile(r"(?:^worker-|zero_pp_rank_)(\d+)[_.]")  # our notes, DeepSpeed's shards


class FolderNotShared(TrainingError):
    """What another worker wrote cannot be seen; trying again gives the same."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint whose files are all there, as they were written."""

    name: str
    step: int
    world: int
    files: list[dict[str, Any]] = field(default_factory=list)  # path, bytes, sha256

    def needed_by(self, rank: int) -> list[str]:
        """Paths that one of ``world`` workers reads: all but the shards and notes of the others."""
        return [entry["path"] for entry in self.files if _rank_of(entry["path"]) in (None, rank)]


def snapshot_name(step: int) -> str:
    """A folder name that sorts by step and is never used twice (a step can be saved again after a restart)."""
    return f"{PREFIX}{step:08d}-{uuid.uuid4().hex[:12]}"


def sign_files(place: Location, names: Sequence[str]) -> list[dict[str, Any]]:
    """{path, bytes, sha256} of files below a place."""
    sizes = dict(storage.list_files(place))
    digests = _digests(place, names)
    return [{"path": name, "bytes": sizes[name], "sha256": digests[name]} for name in names]


def write_complete(place: Location, step: int, world: int, files: list[dict[str, Any]]) -> None:
    """Seal a checkpoint whose other files are all there.

    Raises:
        FolderNotShared: one of them cannot be seen from here; nothing is sealed.
    """
    found = dict(storage.list_files(place))
    for entry in files:
        if found.get(entry["path"]) != entry["bytes"]:
            raise FolderNotShared(
                f"{entry['path']} of the checkpoint {place.uri} was written by another worker and cannot be seen here: "
                "run.output must be a folder that all nodes share, or s3://bucket/prefix"
            )
    tree = {"step": step, "world": world, "files": sorted(files, key=lambda entry: entry["path"])}
    storage.write_small(place.child(COMPLETE), json.dumps(tree).encode())


def newest_valid(runs: Location) -> tuple[Snapshot | None, list[str]]:
    """The valid checkpoint with the most steps, and one sentence for each newer one that was passed over."""
    problems: list[str] = []
    for name in names(runs):
        snapshot, problem = examine(runs.child(name))
        if snapshot is not None:
            return snapshot, problems
        problems.append(f"checkpoint {name} is not used: {problem}")
    return None, problems


def examine(place: Location) -> tuple[Snapshot | None, str]:
    """The checkpoint in a folder if it is whole, otherwise None and what is wrong with it."""
    snapshot, problem = outline(place)
    if snapshot is not None:
        problem = changed(place, snapshot.files)
    return (None, problem) if problem else (snapshot, "")


def outline(place: Location) -> tuple[Snapshot | None, str]:
    """What `examine` finds without reading the files: the seal is whole, all files are there and have their size."""
    text = storage.read_small(place.child(COMPLETE))
    if text is None:
        return None, f"no {COMPLETE}, so it was not written to its end"
    try:
        tree = json.loads(text)
        wanted = {
            storage.inside(entry["path"], COMPLETE): (int(entry["bytes"]), str(entry["sha256"]))
            for entry in tree["files"]
        }
        snapshot = Snapshot(place.path.rpartition("/")[2], int(tree["step"]), int(tree["world"]), tree["files"])
    except (ValueError, KeyError, TypeError, AttributeError, StorageError) as error:
        return None, f"{COMPLETE} is damaged ({type(error).__name__})"
    found = dict(storage.list_files(place))
    for path, (size, _) in wanted.items():
        if found.get(path) != size:
            return None, f"{path} has {found.get(path, 'no')} bytes, {size} were written"
    return snapshot, ""


def changed(place: Location, files: Sequence[Mapping[str, Any]]) -> str:
    """Which of these files is not what was written; empty when all are. Reads every byte of them."""
    digests = _digests(place, [entry["path"] for entry in files])
    for entry in files:
        if digests[entry["path"]] != entry["sha256"]:
            return f"{entry['path']} changed since it was written"
    return ""


def tidy(runs: Location, keep: int) -> None:
    """Before a run starts: delete what a death left (unfinished saves, half deleted ones) and all but the newest.

    ``keep`` finished ones stay. Ray Train deletes by its own books, which such folders are not in.
    """
    finished = 0
    for name in names(runs):
        place = runs.child(name)
        if finished >= keep or storage.read_small(place.child(COMPLETE)) is None:
            storage.remove_folder(place)
        else:
            finished += outline(place)[0] is not None


def drop_stale_books(runs: Location) -> None:
    """Delete Ray Train's list of checkpoints when one that it names is gone: Ray refuses to start with such a list.

    Nothing depends on it: `newest_valid` looks at the folders themselves.
    """
    text = storage.read_small(runs.child(RAYS_BOOKS)) or b""
    named = set(re.findall(rb'"checkpoint_dir_name":\s*"([^"]+)"', text))
    if named - {name.encode() for name in names(runs)}:
        runs.fs.delete_file(runs.child(RAYS_BOOKS).path)


def names(runs: Location) -> list[str]:
    """Names of the checkpoint folders, the newest step first."""
    selector = pafs.FileSelector(runs.path, allow_not_found=True)
    found = [info.base_name for info in runs.fs.get_file_info(selector) if info.type == pafs.FileType.Directory]
    return sorted((name for name in found if name.startswith(PREFIX)), reverse=True)


def _digests(place: Location, paths: Sequence[str]) -> dict[str, str]:
    with ThreadPoolExecutor(HASHERS) as pool:  # hashing releases the interpreter lock
        return dict(zip(paths, pool.map(lambda path: storage.sha256(place.child(path)), paths), strict=True))


def _rank_of(path: str) -> int | None:
    """The worker that a file of a checkpoint belongs to; None for what all of them read."""
    found = _OWN_FILE.search(path.rpartition("/")[2])
    return int(found[1]) if found else None
