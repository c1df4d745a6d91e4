"""The run folder: one folder per stage, each with a fingerprint, its data, and a manifest that is written last.

::

    run folder                  local path or s3://bucket/prefix
    ├── .lock                   held by the driver that works here
    └── <stage>/
        ├── fingerprint.json    what the stage was started with; another one is refused
        ├── data/*.parquet      the stage's rows
        ├── redriven/           files that took the place of some in data/ (`adamllm redrive`)
        ├── ledger/             Ray Data's record of finished rows, where the stage has one
        └── manifest.json       row counts, files with checksums. No manifest: not finished.

A stage runs like this::

    stage = run.stage("ingest")
    if stage.begin(fingerprint, force_new=force_new) == "finished":
        return stage.manifest()
    ... write stage.data ...
    return stage.finish(rows_in=n, verdicts=counts, seconds=seconds)

One driver at a time works in a run folder: see ``locks``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from adamllm_ray.config import RunSection, S3Section
from adamllm_ray.data import locks, storage
from adamllm_ray.data.identity import ids_of
from adamllm_ray.data.manifest import Manifest, installed_versions
from adamllm_ray.data.verdicts import count_outcomes
from adamllm_ray.errors import FingerprintMismatch, RowAccountingError, StorageError

FINGERPRINT, MANIFEST = "fingerprint.json", "manifest.json"
ROWS = ("data", "redriven")  # the folders whose Parquet files are the stage's rows
PRODUCTS = (*ROWS, "model")  # the folders of a stage whose files the manifest signs

State = Literal["fresh", "resume", "finished"]


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder. Cheap to make and to pickle; nothing is touched before ``begin``."""

    name: str
    place: storage.Location

    @property
    def fs(self) -> pafs.FileSystem:
        """The filesystem that ``path``, ``data`` and ``ledger`` are inside of."""
        return self.place.fs

    @property
    def path(self) -> str:
        """The folder, inside ``fs``."""
        return self.place.path

    @property
    def uri(self) -> str:
        """The folder as a local path or s3:// URI."""
        return self.place.uri

    @property
    def data(self) -> str:
        """Folder of the stage's Parquet files, inside ``fs``."""
        return f"{self.path}/data"

    @property
    def ledger(self) -> str:
        """Folder of Ray Data's checkpoint files, inside ``fs``."""
        return f"{self.path}/ledger"

    def begin(self, fingerprint: dict[str, Any], *, force_new: bool = False) -> State:
        """Claim the folder for ``fingerprint`` (plain JSON data).

        Returns "fresh" (nothing was here), "resume" (started before, not finished) or "finished".
        With ``force_new`` an existing folder is first moved aside as ``<name>.old-<n>``.

        Raises:
            FingerprintMismatch: the folder was started with another fingerprint; names the differing keys.
            StorageError: the folder cannot be read or written.
        """
        wanted = json.loads(json.dumps(fingerprint))  # as it will read back: tuples are lists, keys are strings
        with storage.storage_errors(f"open the folder of stage '{self.name}'", self.uri):
            if force_new:
                self._move_aside()
            found = storage.read_small(self.place.child(FINGERPRINT))
            if found is None and not self._files():
                storage.make_folder(self.place)
                storage.write_small(self.place.child(FINGERPRINT), _json_bytes(wanted))
                return "fresh"
            self._compare(found, wanted)
            if storage.read_small(self.place.child(MANIFEST)) is not None:
                return "finished"
            self._heal_ledger()
            return "resume"

    def finish(
        self,
        *,
        rows_in: int,
        verdicts: dict[str, int],
        extra: dict[str, Any] | None = None,
        seconds: float,
        files: Sequence[str] | None = None,
    ) -> Manifest:
        """Check the row identity, sign the files and write the manifest: from now on the stage is finished.

        ``files`` (relative to the stage) are those to sign; by default all products that are there.

        Raises:
            RowAccountingError: kept + rejected + failed differs from ``rows_in``.
            StorageError: the manifest cannot be written.
        """
        counts = {str(name): count for name, count in sorted(verdicts.items()) if count}
        outcomes = count_outcomes(counts)
        if sum(outcomes.values()) != rows_in:
            raise RowAccountingError(
                f"stage '{self.name}': {rows_in} rows came in, but {outcomes['kept']} kept + {outcomes['rejected']} "
                f"rejected + {outcomes['failed']} failed = {sum(outcomes.values())}"
            )
        with storage.storage_errors(f"finish stage '{self.name}'", self.uri):
            fingerprint = json.loads(storage.read_small(self.place.child(FINGERPRINT)) or b"{}")
            manifest = Manifest(
                stage=self.name,
                fingerprint=fingerprint,
                rows_in=rows_in,
                **outcomes,
                verdicts=counts,
                files=self.sign(files),
                seconds=round(seconds, 3),
                extra=extra or {},
                versions=installed_versions(),
            )
            storage.write_small(self.place.child(MANIFEST), manifest.to_json().encode())
        return manifest

    def replace_file(self, name: str, data: bytes) -> Manifest:
        """Give a product of the finished stage new content, and sign it. Does nothing when it was signed with that.

        Raises:
            StorageError: the stage is not finished, or cannot be written.
        """
        manifest = self.manifest()
        if manifest is None:
            raise StorageError(f"{self.uri} is not finished; {name} cannot be replaced")
        entry = {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if entry in manifest.files:
            return manifest
        others = [other for other in manifest.files if other["path"] != name]
        manifest = replace(manifest, files=sorted([*others, entry], key=lambda each: each["path"]))
        with storage.storage_errors(f"write {name}", self.uri):
            storage.write_small(self.place.child(name), data)
            storage.write_small(self.place.child(MANIFEST), manifest.to_json().encode())
        return manifest

    def manifest(self) -> Manifest | None:
        """The manifest, or None when the stage is not finished."""
        with storage.storage_errors("read the manifest", self.uri):
            text = storage.read_small(self.place.child(MANIFEST))
        return None if text is None else Manifest.from_json(text)

    def clear(self) -> None:
        """Delete everything but the fingerprint: for stages that start over instead of resuming."""
        with storage.storage_errors("clear the unfinished stage", self.uri):
            for name in ("data", "ledger"):
                storage.remove_folder(self.place.child(name))
            storage.make_folder(self.place.child("data"))

    def row_ids(self) -> list[str]:
        """The id of every row of the stage, sorted. Raises RowAccountingError when one occurs twice."""
        ids: list[str] = ids_of(self.fs, self.parquet_files(), self.data).to_pylist()
        return ids

    def parquet_files(self) -> list[str]:
        """Paths inside ``fs`` of the Parquet files that hold the stage's rows: what its readers must read.

        Those that the manifest signs; of a stage that is not finished, all in ``data``.

        Raises:
            StorageError: a signed file is missing or has another size; nothing is read past it.
        """
        manifest = self.manifest()
        with storage.storage_errors("list the data", self.uri):
            sizes = {
                f"{name}/{path}": size for name in ROWS for path, size in storage.list_files(self.place.child(name))
            }
        if manifest is None:
            names = [name for name in sizes if name.startswith("data/")]
        else:
            signed = {entry["path"]: entry["bytes"] for entry in manifest.files if entry["path"].split("/")[0] in ROWS}
            for name, size in signed.items():
                if sizes.get(name) != size:
                    found = f"has {sizes[name]} bytes, {size} were written" if name in sizes else "is missing"
                    raise StorageError(f"{self.uri}/{name} {found}; `adamllm verify` says what else is damaged")
            names = list(signed)
        return [f"{self.path}/{name}" for name in names if name.endswith(".parquet")]

    def sign(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """{path, bytes, sha256} of the given files (relative to the stage), by default of all products."""
        sizes = {
            f"{folder}/{path}": size
            for folder in PRODUCTS
            for path, size in storage.list_files(self.place.child(folder))
        }
        files = sorted(sizes if names is None else names)
        with ThreadPoolExecutor(max_workers=8) as pool:  # hashing releases the GIL
            digests = list(pool.map(lambda name: storage.sha256(self.place.child(name)), files))
        return [{"path": name, "bytes": sizes[name], "sha256": d} for name, d in zip(files, digests, strict=True)]

    def _files(self) -> list[tuple[str, int]]:
        return storage.list_files(self.place)

    def _compare(self, found: bytes | None, wanted: dict[str, Any]) -> None:
        if found is None:
            raise FingerprintMismatch(self.name, {FINGERPRINT: ("no such file beside its data", "present")})
        try:
            old = json.loads(found)
        except ValueError:
            raise FingerprintMismatch(self.name, {FINGERPRINT: ("damaged", "present")}) from None
        differing = _differences(old, wanted)
        if differing:
            raise FingerprintMismatch(self.name, differing)

    def _move_aside(self) -> None:
        if not self._files():
            return
        number = 1
        while self.fs.get_file_info(f"{self.path}.old-{number}").type != pafs.FileType.NotFound:
            number += 1
        aside = storage.Location(
            self.fs, f"{self.path}.old-{number}", f"{self.uri}.old-{number}", self.place.local, self.place.s3
        )
        storage.move_folder(self.place, aside)

    def _heal_ledger(self) -> None:
        """Settle the blocks of which both `X.pending` and a committed `X` exist.

        Ray Data commits by renaming; on S3 that is copy then delete, and a death between the two leaves both names.
        The pending one goes: Ray's own resume would delete the finished data for it and still skip the rows. A write
        that was done again because its node died leaves both names too, and may itself have died over the data: when
        that is not whole, the committed name goes and the block is done again.
        """
        names = {path for path, _ in storage.list_files(self.place.child("ledger"))}
        for pending in names:
            done = pending.replace(".pending", "")
            if done != pending and done in names:
                self.fs.delete_file(f"{self.ledger}/{pending if self._is_whole(done) else done}")

    def _is_whole(self, entry: str) -> bool:
        """Whether the data files of a committed block hold the ids that its ledger entry names."""
        block = entry.removesuffix(".parquet")
        listed = storage.list_files(self.place.child("data"))
        parts = [path for path, _ in listed if path.startswith((f"{block}-", f"{block}."))]
        files = [f"{self.ledger}/{entry}", *(f"{self.data}/{path}" for path in parts)]
        try:
            tables = [pq.read_table(file, columns=["id"], filesystem=self.fs) for file in files]
        except (pa.ArrowException, OSError):  # cut off; or unreachable just now, and a block too many costs little
            return False
        wanted, *found = (table.column("id").to_pylist() for table in tables)
        return sorted(wanted) == sorted(name for ids in found for name in ids)


class RunFolder:
    """A run's home. ``uri`` as given (made absolute), ``root`` is the path inside ``fs``.

    ``borrowed`` are finished stages of another run in the same filesystem, which later stages here read as their own.

    Raises ConfigError for a path that cannot be one, StorageError when the object store cannot be reached.
    """

    def __init__(
        self,
        output: str,
        s3: S3Section | None = None,
        *,
        lease_s: float = 60.0,
        s3_lock: bool = True,
        borrowed: Mapping[str, StageFolder] | None = None,
    ) -> None:
        self.place = storage.resolve(output, s3)
        self._lease_s, self._locks = lease_s, s3_lock or self.place.local
        self._borrowed = dict(borrowed or {})
        self.uri: str = self.place.uri
        self.fs: pafs.FileSystem = self.place.fs
        self.root: str = self.place.path
        self.local: bool = self.place.local

    @classmethod
    def of(cls, section: RunSection) -> RunFolder:
        """The folder that a configuration names."""
        return cls(section.output, section.s3, lease_s=section.s3_lease_s, s3_lock=section.s3_lock)

    def stage(self, name: str) -> StageFolder:
        """The folder of one stage."""
        return self._borrowed.get(name) or StageFolder(name, self.place.child(name))

    def write(self, name: str, data: bytes, *, content_type: str | None = None) -> None:
        """Write a small file of the run itself (the resolved configuration, say), whole or not at all."""
        with storage.storage_errors(f"write {name}", self.uri):
            storage.make_folder(self.place.child(name.rpartition("/")[0]) if "/" in name else self.place)
            storage.write_small(self.place.child(name), data, content_type=content_type)

    def read(self, name: str) -> bytes | None:
        """Content of a small file of the run, None when there is none."""
        with storage.storage_errors(f"read {name}", self.uri):
            return storage.read_small(self.place.child(name))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder for the length of the block; see ``locks``.

        Raises:
            RunLocked: another process holds it; says which one.
        """
        with locks.hold(self.place, self._lease_s) if self._locks else nullcontext():
            yield


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[object, object]]:
    """Dotted keys whose values differ, with (old, new); nested dictionaries are compared key by key."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {prefix or "fingerprint": (old, new)}
    differing: dict[str, tuple[object, object]] = {}
    for key in sorted({*old, *new}):
        name = f"{prefix}.{key}" if prefix else key
        differing |= _differences(old.get(key, "(absent)"), new.get(key, "(absent)"), name)
    return differing


def _json_bytes(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, indent=2, sort_keys=True).encode() + b"\n"
