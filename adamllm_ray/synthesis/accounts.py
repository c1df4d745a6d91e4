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

from adamllm_ray.data import storage
from adamllm_ray.data.identity import read_columns, unique_ids
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import RowAccountingError, TooManyFailures

CONTENT = ["id", "task_verdict", "instruction", "informative", "precise"]


@dataclass(frozen=True)
class Tasks:
    """What a set of synthesis files holds: rows per task verdict, a digest of all tasks, all ids sorted."""

    verdicts: dict[str, int]
    content: str
    ids: pa.LargeStringArray


def count_tasks(stage: StageFolder, files: Sequence[str]) -> Tasks:
    """Read ``files`` (paths inside ``stage.fs``). The digest does not depend on the order of rows or files.

    Raises:
        RowAccountingError: a row has no task verdict, or an id occurs twice.
        StorageError: a file cannot be read.
    """
    verdicts: Counter[str | None] = Counter()
    total, ids = 0, []
    with storage.storage_errors("read the tasks", stage.uri):
        for batch in read_columns(stage.fs, files, CONTENT):
            ids.append(batch.column("id"))
            columns = [batch.column(name).to_pylist() for name in CONTENT]
            verdicts.update(columns[1])
            for row in zip(*columns, strict=True):
                total += int.from_bytes(hashlib.sha256(json.dumps(row).encode()).digest(), "little")
    if None in verdicts:
        raise RowAccountingError(f"{stage.uri}: {verdicts[None]} rows have no task verdict")
    digest = (total % 2**256).to_bytes(32, "little").hex()
    return Tasks({str(name): count for name, count in verdicts.items()}, digest, unique_ids(ids, stage.uri))


def check_ceiling(verdicts: dict[str, int], limit: float) -> None:
    """Raise TooManyFailures when the engines failed on more than this share of the rows they were asked for."""
    asked = sum(count for name, count in verdicts.items() if name != Verdict.NOT_SYNTHESIZED)
    causes = [name for name in (Verdict.ENGINE_ERROR, Verdict.ENGINE_DIED) if verdicts.get(name)]
    failed = sum(verdicts[name] for name in causes)
    if failed > limit * asked:
        again = " ".join(f"--verdict {name}" for name in causes)
        raise TooManyFailures(
            f"synthesis: the engine failed on {failed} of {asked} rows, the limit is {limit:.1%} "
            "(synthesis.max_failed_share); task_detail in synthesize/data says why. With the cause removed, "
            f"`adamllm redrive CONFIG {again}` runs those rows again"
        )
