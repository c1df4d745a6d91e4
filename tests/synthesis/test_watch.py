"""Rate, time left and words: on made-up blocks. test_pipeline.py looks at a real folder."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.synthesis.watch import Look, Watch, committed_rows, data_file, rate_of, shown


def test_rate_is_that_of_the_last_minutes_and_start_up_is_not_in_it() -> None:
    assert rate_of([]) is None
    assert rate_of([(100.0, 64)]) is None
    assert rate_of([(100.0, 64), (110.0, 64), (120.0, 64)]) == pytest.approx(6.4)
    long_ago = [(float(moment), 1) for moment in range(0, 5000, 100)]
    assert rate_of([*long_ago, *((9000.0 + moment, 20) for moment in range(11))]) == pytest.approx(20)


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    found = RunFolder(str(tmp_path)).stage("synthesize")
    for folder in (found.data, found.ledger):
        Path(folder).mkdir(parents=True)
    return found


def block(stage: StageFolder, number: int, verdicts: list[str], committed: bool = True) -> None:
    name = f"w_{number:06}"
    table = pa.table({"id": [f"{number}-{row}" for row in range(len(verdicts))], "task_verdict": verdicts})
    pq.write_table(table, f"{stage.data}/{name}-0.parquet")
    pq.write_table(table.select(["id"]), f"{stage.ledger}/{name}{'' if committed else '.pending'}.parquet")


def test_only_finished_blocks_count_and_each_is_read_once(stage: StageFolder) -> None:
    watch = Watch(stage)
    assert watch.look() == Look(0, None, None, {}, 0)
    block(stage, 0, ["kept", "judged_open"])
    block(stage, 1, ["kept"] * 5, committed=False)
    assert (watch.look().rows, watch.look().verdicts) == (2, {"kept": 1, "judged_open": 1})
    Path(f"{stage.data}/w_000000-0.parquet").unlink()  # it is not needed again
    Path(f"{stage.ledger}/w_000001.pending.parquet").rename(f"{stage.ledger}/w_000001.parquet")
    assert (watch.look().rows, watch.look().verdicts) == (7, {"kept": 6, "judged_open": 1})
    assert committed_rows(stage) == 7


def test_many_blocks_are_sampled_and_it_is_said(stage: StageFolder) -> None:
    for number in range(6):
        block(stage, number, ["kept", "kept"])
    watch = Watch(stage)
    assert watch.look(most=2).outcome() == "kept 4 (of 4 rows)"
    assert watch.look(most=9).outcome() == "kept 12"


def test_progress_is_shown_until_the_end(stage: StageFolder, capsys: pytest.CaptureFixture[str]) -> None:
    from adamllm_ray import progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
        with shown(stage, "synthesize", 4):
            block(stage, 0, ["kept", "kept"])
    assert "synthesize: 2/4" in capsys.readouterr().err


def test_of_thousands_of_blocks_little_stays_in_memory(stage: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks that are read for their verdicts are as good as drawn at random; all the rows are counted."""
    monkeypatch.setattr("adamllm_ray.synthesis.watch.UNREAD", 20)
    watch = Watch(stage)
    for number in range(60):
        block(stage, number, ["kept" if number % 2 else "judged_open"])
        long_ago = 1e9 + (0 if number < 50 else 10_000) + number
        os.utime(f"{stage.ledger}/w_{number:06}.parquet", (long_ago, long_ago))
    seen = watch.look(most=5)
    assert (seen.rows, seen.counted, seen.rate) == (60, 5, pytest.approx(1))
    for _ in range(9):
        seen = watch.look(most=5)
    assert (seen.rows, seen.counted) == (60, 20)
    assert set(seen.verdicts) == {"kept", "judged_open"}
    assert (sorted(watch._recent), watch._unread) == ([(1e9 + 10_000 + n, 1) for n in range(50, 60)], [])


def test_a_data_file_that_was_replaced_is_passed_over(stage: StageFolder) -> None:
    block(stage, 0, ["kept"])
    block(stage, 1, ["kept"])
    Path(data_file(stage, "w_000001")).unlink()
    assert (Watch(stage).look().rows, Watch(stage).look().verdicts) == (2, {"kept": 1})
