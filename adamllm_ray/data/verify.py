"""Is a finished stage still what its manifest says: every file, every row, every verdict.

    adamllm verify CONFIG

Files are compared by size and checksum. Then the rows are counted again from the files themselves: how many, under
which verdict, ids unique, and the same ids as in the stage they came from.
"""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.data import storage
from adamllm_ray.data.identity import missing, read_columns, repeated, sorted_ids
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import MANIFEST, StageFolder
from adamllm_ray.errors import StorageError

SHOWN = 3  # ids named as examples


def verify(stage: StageFolder, source: StageFolder | None = None) -> list[str]:
    """One sentence per missing, changed or foreign file and per count that differs; empty when all is well.

    ``source`` is the stage whose rows must be the same ones.
    """
    manifest = stage.manifest()
    if manifest is None:
        return [f"{stage.uri}: not finished (no {MANIFEST})"]
    problems = _files(stage, manifest)
    files = [] if problems else stage.parquet_files()  # what a damaged file still holds is no news
    if not files:
        return problems
    try:
        ids, verdicts = _rows(stage, files)
    except (OSError, pa.ArrowException) as error:
        return [f"{stage.uri}: cannot be read ({_short(error)})"]
    twice = repeated(ids)
    if len(twice):
        problems.append(f"{stage.uri}: ids that occur more than once: {_some(twice.unique())}")
    return problems + _counts(stage, manifest, verdicts) + _identity(stage, source, ids)


def _files(stage: StageFolder, manifest: Manifest) -> list[str]:
    signed = {entry["path"]: entry for entry in manifest.files}
    with storage.storage_errors("verify", stage.uri):
        found = {entry["path"]: entry for entry in stage.sign()}
    problems = [f"{stage.uri}/{path}: is missing" for path in signed.keys() - found.keys()]
    problems += [f"{stage.uri}/{path}: is not part of the run" for path in found.keys() - signed.keys()]
    problems += [
        f"{stage.uri}/{path}: changed ({found[path]['bytes']} bytes, the manifest says {signed[path]['bytes']})"
        for path in signed.keys() & found.keys()
        if signed[path] != found[path]
    ]
    return sorted(problems)


def _rows(stage: StageFolder, files: list[str]) -> tuple[pa.LargeStringArray, Counter[str]]:
    """(ids, sorted; rows per verdict); the verdict is the task's where there is one."""
    names = pq.read_schema(files[0], filesystem=stage.fs).names
    verdict = "task_verdict" if "task_verdict" in names else "verdict"
    ids, verdicts = [], Counter[str]()
    for batch in read_columns(stage.fs, files, ["id", verdict]):
        ids.append(batch.column("id"))
        verdicts.update(map(str, batch.column(verdict).to_pylist()))
    return sorted_ids(ids), verdicts


def _counts(stage: StageFolder, manifest: Manifest, verdicts: Counter[str]) -> list[str]:
    problems = []
    if verdicts.total() != manifest.rows_in:
        problems.append(f"{stage.uri}: holds {verdicts.total()} rows, the manifest says {manifest.rows_in}")
    for name in sorted({*verdicts, *manifest.verdicts}):
        have, said = verdicts[name], manifest.verdicts.get(name, 0)
        if have != said:
            problems.append(f"{stage.uri}: {have} rows have the verdict {name}, the manifest says {said}")
    return problems


def _identity(stage: StageFolder, source: StageFolder | None, ids: pa.LargeStringArray) -> list[str]:
    if source is None:
        return []
    try:
        wanted, _ = _rows(source, source.parquet_files())
    except (OSError, pa.ArrowException, StorageError):
        return []  # named where the source itself is verified
    problems = []
    if len(lost := missing(wanted, ids)):
        problems.append(f"{stage.uri}: {len(lost)} rows of '{source.name}' are missing: {_some(lost)}")
    if len(foreign := missing(ids, wanted)):
        problems.append(f"{stage.uri}: {len(foreign)} rows are not in '{source.name}': {_some(foreign)}")
    return problems


def _some(names: pa.LargeStringArray) -> str:
    return ", ".join(names[:SHOWN].to_pylist()) + (", ..." if len(names) > SHOWN else "")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
