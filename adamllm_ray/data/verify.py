"""Is a finished stage still what its manifest says: every file, every row, every verdict.

    adamllm verify CONFIG

Files are compared by size and checksum. Then the rows are counted again from the files themselves: how many, under
which verdict, ids unique, and the same ids as in the stage they came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.data import storage
from adamllm_ray.data.run import MANIFEST, Manifest, StageFolder
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
    ids: set[str] = set()
    verdicts: Counter[str] = Counter()
    for file in files:
        try:
            names, found = _rows(stage, file)
        except (OSError, pa.ArrowException) as error:
            problems.append(f"{stage.uri}/{file[len(stage.path) + 1 :]}: cannot be read ({_short(error)})")
            continue
        twice = {name for name, count in Counter(names).items() if count > 1} | (ids & set(names))
        if twice:
            problems.append(f"{stage.uri}: ids that occur more than once: {_some(twice)}")
        ids.update(names)
        verdicts.update(found)
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


def _rows(stage: StageFolder, file: str) -> tuple[list[str], list[str]]:
    """(ids, verdicts) of one file; the verdict is the task's where there is one."""
    with stage.fs.open_input_file(file) as handle:
        content = pq.ParquetFile(handle)
        verdict = "task_verdict" if "task_verdict" in content.schema_arrow.names else "verdict"
        table = content.read(columns=["id", verdict])
    return table.column("id").to_pylist(), [str(name) for name in table.column(verdict).to_pylist()]


def _counts(stage: StageFolder, manifest: Manifest, verdicts: Counter[str]) -> list[str]:
    problems = []
    if verdicts.total() != manifest.rows_in:
        problems.append(f"{stage.uri}: holds {verdicts.total()} rows, the manifest says {manifest.rows_in}")
    for name in sorted({*verdicts, *manifest.verdicts}):
        have, said = verdicts[name], manifest.verdicts.get(name, 0)
        if have != said:
            problems.append(f"{stage.uri}: {have} rows have the verdict {name}, the manifest says {said}")
    return problems


def _identity(stage: StageFolder, source: StageFolder | None, ids: set[str]) -> list[str]:
    if source is None:
        return []
    wanted: set[str] = set()
    try:
        for file in source.parquet_files():
            wanted.update(_rows(source, file)[0])
    except (OSError, pa.ArrowException, StorageError):
        return []  # named where the source itself is verified
    problems = []
    if wanted - ids:
        problems.append(f"{stage.uri}: {len(wanted - ids)} rows of '{source.name}' are missing: {_some(wanted - ids)}")
    if ids - wanted:
        problems.append(f"{stage.uri}: {len(ids - wanted)} rows are not in '{source.name}': {_some(ids - wanted)}")
    return problems


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:SHOWN]) + (", ..." if len(ordered) > SHOWN else "")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
