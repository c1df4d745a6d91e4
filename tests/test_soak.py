"""The arithmetic of benchmarks/soak.py, and its table of hostile records against the real ingest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import S3Section, parse_config
from adamllm_ray.data.ingest import ingest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.s3 import filesystem
from adamllm_ray.data.verdicts import Verdict
from benchmarks.hostile_records import EVERY, HOSTILE, compare, expected, hostile_kind, name_of, usable, write_source
from benchmarks.recovery_times import Kill, asked_again, by_kind, memory, next_row, replaced, rows_per_s
from benchmarks.soak import Journal
from tests.faulty import FaultProxy
from tests.synthesis.fakes import number_of

ONE_ROUND = EVERY * len(HOSTILE)


def test_work_goes_on_with_the_next_block_but_after_a_driver_with_its_successors() -> None:
    commits = {"first_0": 10.0, "first_1": 21.0, "second_0": 33.0, "second_1": 34.0}
    assert next_row(Kill("replica", 20.0, 0), commits) == 1.0
    assert next_row(Kill("driver", 20.0, 0), commits) == 13.0  # first_1 was on its way when its driver died
    assert next_row(Kill("driver", 40.0, 1), commits) is None


def test_a_replica_is_replaced_by_one_that_was_not_there_in_the_same_drivers_life() -> None:
    asked = [[(1, 10.0), (2, 11.0), (1, 22.0), (3, 25.0)], [(4, 40.0)]]
    assert replaced(Kill("replica", 20.0, 0, (1, 2)), asked) == 5.0
    assert replaced(Kill("driver", 30.0, 0, (1, 3)), asked) == 10.0
    assert replaced(Kill("node", 26.0, 0, (1, 2, 3)), asked) is None  # the driver died before


def test_median_and_worst_by_kind() -> None:
    kills = [Kill(kind, 0.0, 0) for kind in ("node", "driver", "node", "node")]
    assert by_kind(kills, [1.0, 7.04, None, 4.0]) == {
        "driver": {"kills": 1, "followed": 1, "median_s": 7.0, "worst_s": 7.0},
        "node": {"kills": 3, "followed": 2, "median_s": 2.5, "worst_s": 4.0},
    }
    assert by_kind(kills[:1], [None]) == {"node": {"kills": 1, "followed": 0}}


def test_rate_between_the_first_block_and_a_share_of_all() -> None:
    times = [float(number) for number in range(10)] + [100.0]
    assert rows_per_s(times, rows=110) == pytest.approx(1.0)
    assert rows_per_s(times, rows=110, share=0.9) == pytest.approx(10.0)
    with pytest.raises(ValueError, match="rate"):
        rows_per_s([1.0], 10)


def test_rows_that_were_asked_again() -> None:
    assert asked_again(["a", "b", "a", "a", "c"]) == {"recomputed_share": 1 / 3, "requests_per_row": 5 / 3}


def test_memory_slopes_are_within_a_process_and_after_its_first_minute() -> None:
    def life(level: float, per_minute: float, start: float) -> list[tuple[float, float]]:
        return [(start + s, 1000.0 if s == 0 else level + per_minute * s / 60) for s in range(0, 180, 2)]

    flat = memory([life(200, 0, 0.0), life(300, 0, 1000.0)])
    assert flat["mb_per_minute"] == 0.0
    assert (flat["processes"], flat["peak_mb"]) == (2, 1000.0)
    grows = memory([life(300, 2, 0.0), life(200, 2, 1000.0)])
    assert grows["mb_per_minute"] == pytest.approx(2.0)
    assert grows["minutes_fitted"] == pytest.approx(3.9, abs=0.1)
    assert memory([life(200, 5, 0.0)[:20]])["mb_per_minute"] is None
    assert memory([]) == {"processes": 0, "peak_mb": 0.0, "mb_per_minute": None, "minutes_fitted": 0.0}


def test_ingest_says_of_every_hostile_record_what_the_table_says(tmp_path: Path) -> None:
    rows = ONE_ROUND
    write_source(str(tmp_path / "source"), rows)
    data = {"format": "parquet", "path": str(tmp_path / "source"), "columns": {"key": "name"}}
    run = RunFolder(str(tmp_path / "run"))
    manifest = ingest(parse_config({"run": {"output": run.uri}, "data": data}), run)
    table = pads.dataset(run.stage("ingest").data).to_table(columns=["key", "verdict"])
    found = {row["key"]: row["verdict"] for row in table.to_pylist()}
    assert {hostile_kind(n): found[name_of(n)] for n in range(EVERY - 1, rows, EVERY)} == {
        kind: one.verdict for kind, one in HOSTILE.items()
    }
    assert found == {name_of(n): expected(n) for n in range(rows)}
    assert manifest.kept == usable(rows)


def results(rows: int) -> list[dict[str, Any]]:
    """What a faultless synthesis would leave."""
    found = []
    for number in range(rows):
        verdict = expected(number)
        fine = verdict is Verdict.OK
        found.append(
            {
                "key": name_of(number),
                "id": f"{number:032x}",
                "verdict": str(verdict),
                "task_verdict": "kept" if fine else "not_synthesized",
                "task_detail": None if fine else str(verdict),
                "precise": f"circle {number_of(f'{number:032x}')}" if fine else None,
            }
        )
    return found


def test_a_faultless_result() -> None:
    found = compare(ONE_ROUND, results(ONE_ROUND))
    assert found.faultless
    assert (found.hostile, found.hostile_as_expected) == (len(HOSTILE), len(HOSTILE))
    assert found.verdicts.total() == ONE_ROUND


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("lost", lambda rows: rows.pop(7)),
        ("doubled", lambda rows: rows.append(dict(rows[7]))),
        ("doubled", lambda rows: rows.append(rows[7] | {"key": "from somewhere"})),
        ("wrong_verdicts", lambda rows: rows[7].update(task_verdict="response_empty")),
        ("wrong_verdicts", lambda rows: rows[EVERY - 1].update(verdict="image_missing", task_detail="image_missing")),
        ("wrong_verdicts", lambda rows: rows[EVERY - 1].update(task_verdict="kept")),
        ("misplaced_answers", lambda rows: rows[7].update(precise="circle 99")),
    ],
)
def test_what_is_wrong_is_counted_and_named(name: str, spoil: Any) -> None:
    rows = results(100)
    spoil(rows)
    found = compare(100, rows)
    assert not found.faultless
    assert {one: getattr(found, one) for one in ("lost", "doubled", "wrong_verdicts", "misplaced_answers")} == {
        one: int(one == name) for one in ("lost", "doubled", "wrong_verdicts", "misplaced_answers")
    }
    assert len(found.examples) == 1


def test_the_journal_notes_a_ledger_entry_when_it_gets_its_final_name(bucket: Any) -> None:
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        proxy.reset(journal := Journal(0.5))
        fs = filesystem("runs", S3Section(endpoint=proxy.url))
        ledger, table = "runs/r/synthesize/ledger", pa.table({"id": ["a"]})
        names = [f"execution_{number:06}" for number in range(4)]
        for name in names:
            pq.write_table(table, f"{ledger}/{name}.pending.parquet", filesystem=fs)
        assert journal.commits == {}
        for name in names:
            fs.move(f"{ledger}/{name}.pending.parquet", f"{ledger}/{name}.parquet")
        assert list(journal.commits) == names
        assert journal.latest == journal.commits[names[-1]]
        assert proxy.faults > 0
