"""The plan: a fair probe, sums that can be checked by hand. The fake engine stands in for speed only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import SourceError
from adamllm_ray.report.summary import plan_lines, plan_table
from adamllm_ray.synthesis import plan as module
from adamllm_ray.synthesis.plan import Probe, alone, busy_seconds, draw, plan, reckon
from tests.synthesis.fakes import FakeMaker, asked_rows, config_for, png, write_ingest
from tests.synthesis.test_redrive import without_ray

pytestmark = pytest.mark.timeout(300)

PROBE = Probe(100, 0.5, 0.05, 60.0, 200.0, 1000.0, {"kept": 60, "judged_open": 40})


def ingested(rows: int) -> Manifest:
    files = [{"path": "data/a.parquet", "bytes": 5_000_000, "sha256": ""}]
    return Manifest("ingest", {}, rows + 7, rows, 0, 7, {"ok": rows, "image_missing": 7}, files, 1.0)


def gpus(synthesizers: int, judges: int) -> RunConfig:
    def engine(replicas: int, each: int) -> dict[str, Any]:
        return {"engine": {"replicas": replicas, "gpus_per_replica": each}}

    return parse_config({"run": {"output": "x"}, "synthesis": engine(synthesizers, 2), "judge": engine(judges, 1)})


def test_sums() -> None:
    found = reckon(gpus(4, 1), ingested(36_000), PROBE, 2.0)
    first, second, *_ = found.sizes
    assert (first.synthesizers, first.judges, first.rows_per_second) == (4, 1, 8.0)  # 4 / 0.5; the judge could do 20
    assert first.hours == pytest.approx((36_000 / 8 + 60) / 3600)
    assert first.unit_hours == pytest.approx(first.hours * 9)  # 4 x 2 GPUs and 1
    assert first.cost == pytest.approx(first.unit_hours * 2)
    assert (second.synthesizers, second.judges, second.rows_per_second) == (8, 1, 16.0)
    assert [(size.synthesizers, size.judges) for size in found.sizes[2:]] == [(16, 2), (32, 4)]  # judges keep up
    assert (found.unit, found.rows, found.keep.value) == ("GPU", 36_000, 0.6)
    assert found.keep.lo < 0.6 < found.keep.hi
    assert found.output_bytes == 5_000_000 + 36_000_000
    assert json.loads(found.to_json())["sizes"][0]["synthesizers"] == 4


def test_a_judge_that_is_too_slow_bounds_the_run() -> None:
    slow = Probe(100, 0.5, 2.0, 0.0, 1.0, -5.0, {"judged_open": 100})
    found = reckon(gpus(4, 1), ingested(100), slow, None)
    assert found.sizes[0].rows_per_second == 0.5
    assert found.sizes[1].judges == 32
    assert found.sizes[0].cost is None
    assert found.keep.lo == pytest.approx(0)
    assert found.output_bytes == 5_000_000


def test_without_gpus_it_counts_cpus() -> None:
    found = reckon(parse_config({"run": {"output": "x"}}), ingested(7200), PROBE, None)
    assert (found.unit, found.sizes[0].unit_hours) == ("CPU", pytest.approx(2 * (3600 + 60) / 3600))


def test_what_is_printed_holds_the_numbers() -> None:
    from rich.console import Console

    found = reckon(gpus(4, 1), ingested(36_000), PROBE, 2.0)
    console = Console(width=120, record=True)
    console.print(plan_table(found))
    shown = console.export_text() + "\n".join(plan_lines(found))
    for words in (
        "36,000 rows",
        "1 h 16 min",
        "11.40",
        "22.80",
        "60 % of the rows",
        "0.041 GB",
        "kept 60, judged_open 40",
    ):
        assert words in shown


def test_waiting_is_not_work() -> None:
    assert busy_seconds([]) == 0
    assert busy_seconds([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4


def test_the_probe_has_one_replica_and_small_blocks() -> None:
    small = alone(gpus(8, 4), 100)
    assert (small.synthesis.engine.replicas, small.judge.engine.replicas) == (1, 1)
    assert small.synthesis.rows_per_block == 12
    assert alone(gpus(1, 1), 4).synthesis.rows_per_block == 1


def test_the_sample_is_drawn_by_hash_from_usable_rows(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    rows: list[dict[str, object]] = [{"image": png(number), "caption": f"circle {number}"} for number in range(30)]
    write_ingest(run, [*rows, {"image": None, "caption": "", "verdict": "image_missing"}])
    source = run.stage("ingest")
    ten, twenty = (set(draw(source, count, 3)["id"].to_pylist()) for count in (10, 20))
    assert (len(ten), len(twenty)) == (10, 20)
    assert ten < twenty
    assert ten != set(draw(source, 10, 4)["id"].to_pylist())
    assert len(draw(source, 99, 3)) == 30


def test_a_plan_of_a_run_changes_nothing_but_its_own_folder(
    tmp_path: Path, tiny_vlm: Path, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_graph", without_ray)
    monkeypatch.setattr(module, "ray_session", lambda: pytest.MonkeyPatch.context())
    run, maker = RunFolder(str(tmp_path / "run")), FakeMaker(str(tmp_path / "log"))
    config = config_for(tmp_path / "run", tiny_vlm, tiny_judge)
    with pytest.raises(SourceError, match="adamllm ingest"):
        plan(config, run)
    write_ingest(run, [{"image": png(number), "caption": f"circle {number}"} for number in range(30)])
    for _ in range(2):  # it can be asked again
        found = plan(config, run, rows=12, price=1.0, engine_maker=maker)
        assert (found.rows, found.probe.rows, found.probe.verdicts) == (30, 12, {"kept": 12})
        assert found.probe.synthesizer_seconds > 0
        assert found.probe.tokens > 5
    assert len(asked_rows(maker.log)) == 24
    assert run.stage("synthesize").manifest() is None
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["ingest", "plan"]
    assert json.loads(run.read("plan/plan.json") or b"")["rows"] == 30
