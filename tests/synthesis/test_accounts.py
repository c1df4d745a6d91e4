"""Counting rows: any difference between what came in and what was written is found and named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.errors import RowAccountingError, TooManyFailures
from adamllm_ray.synthesis.accounts import CONTENT, check_ceiling, count_tasks

ROWS = [
    ("b", "kept", "what?", "long", "short"),
    ("a", "judged_open", "who?", "x", "y"),
    ("c", "not_synthesized", *[None] * 3),
]


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return RunFolder(str(tmp_path)).stage("synthesize")


def write(stage: StageFolder, name: str, rows: list[tuple[str | None, ...]]) -> str:
    path = Path(stage.path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict(zip(CONTENT, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), path)
    return str(path)


def test_the_digest_is_of_the_tasks_and_not_of_their_order(stage: StageFolder) -> None:
    one = count_tasks(stage, [write(stage, "all.parquet", list(ROWS))])
    parts = [write(stage, "1.parquet", [ROWS[2]]), write(stage, "2.parquet", [ROWS[0], ROWS[1]])]
    assert count_tasks(stage, parts) == one
    assert one.verdicts == {"kept": 1, "judged_open": 1, "not_synthesized": 1}
    assert one.ids.to_pylist() == ["a", "b", "c"]
    changed = count_tasks(stage, [write(stage, "all.parquet", [*ROWS[:2], ("c", "not_synthesized", "", None, None)])])
    assert changed.content != one.content


def test_a_row_without_verdict_and_an_id_twice_stop_the_run(stage: StageFolder) -> None:
    with pytest.raises(RowAccountingError, match="1 rows have no task verdict"):
        count_tasks(stage, [write(stage, "x.parquet", [("a", None, "", "", "")])])


def test_failed_share_has_a_ceiling() -> None:
    check_ceiling({"engine_error": 5, "kept": 95, "not_synthesized": 900}, 0.05)
    with pytest.raises(TooManyFailures, match="6 of 100"):
        check_ceiling({"engine_error": 6, "kept": 94, "not_synthesized": 900}, 0.05)
    with pytest.raises(TooManyFailures, match=r"6 of 100.* --verdict engine_error --verdict engine_died`"):
        check_ceiling({"engine_error": 2, "engine_died": 4, "kept": 94}, 0.05)
