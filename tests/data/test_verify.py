"""`verify` on real files, damaged for real."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verify import verify

pytestmark = [pytest.mark.timeout(60), pytest.mark.guards]


def write_rows(stage: StageFolder, rows: dict[str, str], name: str = "part-0.parquet", column: str = "verdict") -> Path:
    file = Path(stage.data) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(rows), column: list(rows.values())}), file)
    return file


def finished(stage: StageFolder, parts: list[dict[str, str]], column: str = "verdict") -> StageFolder:
    stage.begin({})
    for number, rows in enumerate(parts):
        write_rows(stage, rows, f"part-{number}.parquet", column)
    verdicts: dict[str, int] = {}
    for name in (verdict for rows in parts for verdict in rows.values()):
        verdicts[name] = verdicts.get(name, 0) + 1
    stage.finish(rows_in=sum(verdicts.values()), verdicts=verdicts, seconds=0)
    return stage


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


@pytest.fixture
def stage(run: RunFolder) -> StageFolder:
    return finished(run.stage("ingest"), [{"a": "ok", "b": "duplicate"}, {"c": "ok"}])


def test_damaged_missing_and_foreign_files_are_named(stage: StageFolder) -> None:
    assert verify(stage) == []
    part = Path(stage.data) / "part-0.parquet"
    whole = part.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 50)):
        part.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert len(verify(stage)) == 1
    part.write_bytes(whole[:-10])
    assert "part-0.parquet: changed" in verify(stage)[0]
    part.unlink()
    assert "is missing" in verify(stage)[0]
    part.write_bytes(whole)
    write_rows(stage, {"z": "ok"}, "part-9.parquet")
    assert "part-9.parquet: is not part of the run" in verify(stage)[0]


def test_an_unfinished_stage_says_so(run: RunFolder) -> None:
    run.stage("ingest").begin({})
    assert "not finished" in verify(run.stage("ingest"))[0]


def test_a_manifest_that_counts_wrongly_is_noticed(stage: StageFolder) -> None:
    path = Path(stage.path) / "manifest.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"rows_in": 4, "verdicts": {"ok": 2, "image_missing": 1}}))
    assert [problem.split(": ")[1] for problem in verify(stage)] == [
        "holds 3 rows, the manifest says 4",
        "1 rows have the verdict duplicate, the manifest says 0",
        "0 rows have the verdict image_missing, the manifest says 1",
    ]


def test_ids_must_be_unique_and_those_of_the_source(run: RunFolder, stage: StageFolder) -> None:
    tasks = finished(run.stage("synthesize"), [{"a": "kept", "b": "kept"}, {"b": "kept", "z": "kept"}], "task_verdict")
    twice, missing, foreign = verify(tasks, stage)
    assert twice.endswith("more than once: b")
    assert missing.endswith("1 rows of 'ingest' are missing: c")
    assert foreign.endswith("1 rows are not in 'ingest': z")


def test_only_what_the_manifest_names_is_the_stage(stage: StageFolder) -> None:
    write_rows(stage, {"z": "ok"}, "part-9.parquet")
    assert [Path(path).name for path in stage.parquet_files()] == ["part-0.parquet", "part-1.parquet"]
    assert sorted(stage.row_ids()) == ["a", "b", "c"]
