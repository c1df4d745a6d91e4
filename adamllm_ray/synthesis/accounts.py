"""Counting: are the rows that were written exactly the rows that came in, and what became of them.

Everything is read file by file, short columns only, so that millions of rows cost megabytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from adamllm_ray.data import storage
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import RowAccountingError, TooManyFailures

CONTENT = ["id", "task_verdict", "instruction", "informative", "precise"]


@dataclass(frozen=True)
class Tasks:
    """What a set of synthesis files holds: rows per task verdict, a digest of all tasks, all ids sorted."""

    verdicts: dict[str, int]
    content: str
    ids: pa.StringArray


def count_tasks(stage: StageFolder, files: Sequence[str]) -> Tasks:
    """Read ``files`` (paths inside ``stage.fs``). The digest does not depend on the order of rows or files.

    Raises:
        RowAccountingError: a row has no task verdict, or an id occurs twice.
        StorageError: a file cannot be read.
    """
    verdicts: Counter[str | None] = Counter()
    total, ids = 0, []
    with storage.storage_errors("read the tasks", stage.uri):
        for file in files:
            table = pq.read_table(file, columns=CONTENT, filesystem=stage.fs, partitioning=None)
            verdicts.update(table.column("task_verdict").to_pylist())
            ids += table.column("id").chunks
            for row in zip(*(table.column(name).to_pylist() for name in CONTENT), strict=True):
                total += int.from_bytes(hashlib.sha256(json.dumps(row).encode()).digest(), "little")
    if None in verdicts:
        raise RowAccountingError(f"{stage.uri}: {verdicts[None]} rows have no task verdict")
    digest = (total % 2**256).to_bytes(32, "little").hex()
    return Tasks({str(name): count for name, count in verdicts.items()}, digest, sorted_ids(ids, stage.uri))


def ids_of(fs: pafs.FileSystem, files: Sequence[str], where: str) -> pa.StringArray:
    """All ids in Parquet files, sorted. Raises RowAccountingError when one occurs twice."""
    with storage.storage_errors("read the ids", where):
        parts = [pq.read_table(file, columns=["id"], filesystem=fs, partitioning=None) for file in files]
    return sorted_ids([chunk for part in parts for chunk in part.column("id").chunks], where)


def sorted_ids(chunks: Sequence[pa.Array], where: str) -> pa.StringArray:
    """The ids of all chunks in order. Raises RowAccountingError when one occurs twice."""
    strings = [chunk.cast(pa.string()) for chunk in chunks]
    ids = pa.concat_arrays(strings) if strings else pa.array([], pa.string())
    ids = ids.take(pc.sort_indices(ids))
    twice = ids[1:].filter(pc.equal(ids[1:], ids[:-1])) if len(ids) > 1 else ids[:0]
    if len(twice):
        raise RowAccountingError(f"id {twice[0]} occurs more than once in {where}")
    return ids


def check_same(wanted: pa.StringArray, found: pa.StringArray, what: str) -> None:
    """Raise RowAccountingError, counting and naming the difference, unless both (sorted) are the same ids."""
    if wanted.equals(found):
        return
    missing = wanted.filter(pc.invert(pc.is_in(wanted, found)))
    foreign = found.filter(pc.invert(pc.is_in(found, wanted)))
    example = (missing if len(missing) else foreign)[0]
    raise RowAccountingError(
        f"{what}: {len(missing)} rows are missing and {len(foreign)} are foreign, for example {example}; "
        "start the stage again with --force-new"
    )


def check_ceiling(verdicts: dict[str, int], limit: float) -> None:
    """Raise TooManyFailures when the engines failed on more than this share of the rows they were asked for."""
    asked = sum(count for name, count in verdicts.items() if name != Verdict.NOT_SYNTHESIZED)
    failed = verdicts.get(Verdict.ENGINE_ERROR, 0)
    if failed > limit * asked:
        raise TooManyFailures(
            f"synthesis: the engine failed on {failed} of {asked} rows, the limit is {limit:.1%} "
            "(synthesis.max_failed_share); task_detail in synthesize/data says why. With the cause removed, "
            "`adamllm redrive CONFIG --verdict engine_error` runs those rows again"
        )
