"""Sizing: sums that can be checked by hand, and the same run played event by event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from adamllm_ray.cli import app
from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError
from adamllm_ray.report.summary import size_lines
from adamllm_ray.synthesis.graph import UNEVENNESS
from adamllm_ray.synthesis.sizing import GIB, Speed, Target, lost_share, reckon, size
from benchmarks.cluster_sim import last_line
from benchmarks.simulated_synthesis import Job, Lengths, Replicas, Synthesis

PAGE = Path(__file__).parents[2] / "docs" / "sizing.md"
pytestmark = pytest.mark.timeout(120)

PROBE = {"synthesizer_seconds": 0.36, "judge_seconds": 0.09, "start_seconds": 180.0}
PLAN = {"probe": PROBE, "output_bytes": 200_000_000, "rows": 1000}


def on_gpus(**engine: Any) -> RunConfig:
    both = {"gpus_per_replica": 1, "max_num_seqs": 256} | engine
    return parse_config({"run": {"output": "x"}, "synthesis": {"engine": both}, "judge": {"engine": both}})


SPEED = Speed.of(PLAN, on_gpus())


def test_sums() -> None:
    assert (SPEED.tail_s, SPEED.row_bytes) == (pytest.approx(4 * 0.36 * 256), 200_000)
    found = reckon(on_gpus(), SPEED, Target(1_000_000, 12.0, price=2.0))
    left = 12 * 3600 - 300 - 180 - SPEED.tail_s
    assert found.synthesizers == -(-360_000 // left) == 9
    assert (found.judges, found.gpus, found.nodes) == (3, 12, 2)
    assert found.hours == pytest.approx((360_000 / 9 + 300 + 180 + SPEED.tail_s) / 3600)
    assert found.gpu_hours == pytest.approx(12 * (found.hours - 300 / 3600))
    assert found.cost == pytest.approx(2 * found.gpu_hours)
    assert found.goodput == pytest.approx(450_000 / 3600 / found.gpu_hours)
    assert found.bucket_bytes == 2 * 200_000 * 1_000_000
    assert found.cpus == -(-(2 + 6 * 2 + 4.5 * 0.05 / 0.36) // 1)
    assert found.shm_bytes == found.object_store_bytes + 8 * GIB
    pool_rows = 9 * (18 + 4) * 64  # 17 blocks of 64 in work, one next, four waiting for the judge
    assert found.object_store_bytes == -(-(pool_rows * 200_000 + 9 * (256 << 20)) / 2 * 2 // GIB) * GIB
    assert not found.notes
    assert json.loads(found.to_json())["synthesizers"] == 9


def test_what_is_printed_holds_the_numbers() -> None:
    text = "\n".join(size_lines(reckon(on_gpus(), SPEED, Target(1_000_000, 12.0, price=2.0))))
    for words in ("synthesis.engine.replicas=9", "judge.engine.replicas=3", "12 GPUs on 2 nodes", "400 GB", "cost 2"):
        assert words in text


def test_notes_say_what_to_change() -> None:
    hurried = reckon(on_gpus(), SPEED, Target(1_000_000, 0.6))
    assert any("starting" in note for note in hurried.notes)
    fast = Speed(0.01, 0.001, 60.0, 10.0, 1000.0)
    notes = reckon(on_gpus(), fast, Target(10_000_000, 2.0)).notes
    assert any("synthesis.rows_per_block to 256" in note for note in notes)
    assert any("one CPU per replica" in note for note in notes)


@given(
    images=st.integers(1, 10**8),
    hours=st.floats(0.5, 500),
    losses=st.floats(0, 24),
    synthesizer_s=st.floats(0.001, 20),
    judge_s=st.floats(0.001, 20),
)
@settings(deadline=None)
def test_it_is_done_in_time_with_no_replica_too_many(
    images: int, hours: float, losses: float, synthesizer_s: float, judge_s: float
) -> None:
    speed, target = Speed(synthesizer_s, judge_s, 100.0, 100.0, 1e5), Target(images, hours, losses=losses)
    found = reckon(on_gpus(), speed, target)
    assert found.hours <= hours * (1 + 1e-9)
    assert 0 < found.goodput <= 1
    if found.synthesizers > 1:  # one less would be late
        work = images * (1 + lost_share(speed, target)) * synthesizer_s / (found.synthesizers - 1)
        assert work + 500 > 3600 * hours


@pytest.mark.parametrize(("hours", "losses"), [(3.0, 0.0), (3.0, 6.0), (24.0, 0.0), (24.0, 6.0)])
def test_played_event_by_event_it_takes_about_as_long(hours: float, losses: float) -> None:
    images = 100_000
    found = reckon(on_gpus(), SPEED, Target(images, hours, losses=losses))
    job = Job(
        images,
        Replicas(found.synthesizers, Lengths(0.36 * 256), 256, unevenness=UNEVENNESS),
        Replicas(found.judges, Lengths(0.09 * 256, sigma=0.0), 256),
        start_s=180.0,
        provision_s=300.0,
        losses_per_node_day=losses,
    )
    played = Synthesis(job).run()
    assert played.seconds / 3600 == pytest.approx(found.hours, rel=0.1)
    assert played.gpu_hours == pytest.approx(found.gpu_hours, rel=0.1)


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    with pytest.raises(ConfigError, match="run `adamllm plan` first"):
        size(on_gpus(), run, Target(1000, 1.0))
    with pytest.raises(ConfigError, match="gpus_per_replica"):
        reckon(parse_config({"run": {"output": "x"}}), SPEED, Target(1000, 1.0))
    with pytest.raises(ConfigError, match="less than starting"):
        reckon(on_gpus(), SPEED, Target(1000, 0.1))


def test_the_command_reads_the_plan_of_the_run(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    engine = "{engine: {gpus_per_replica: 1}}"
    config.write_text(f"run: {{output: {tmp_path}/run}}\nsynthesis: {engine}\njudge: {engine}\n")
    (tmp_path / "run" / "plan").mkdir(parents=True)
    RunFolder(f"{tmp_path}/run").write("plan/plan.json", json.dumps(PLAN).encode())
    asked = ["size", str(config), "--images", "1000000", "--hours", "12"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert "GPUs on" in shown.output
    found = json.loads(CliRunner().invoke(app, [*asked, "--price", "2", "--json"]).output)
    assert found["cost"] == pytest.approx(2 * found["gpu_hours"])


def test_the_line_of_sizes_is_what_the_sums_give_now() -> None:
    from benchmarks.cluster_sim import IMAGES
    from benchmarks.sizes import HOURS, needs, shown

    line = last_line("sizes")
    assert line is not None
    again = [shown(images, needs(images, hours)) for images in IMAGES for hours in HOURS[images]]
    assert json.loads(json.dumps(again)) == line["table"]


def test_every_table_of_the_page_is_printed_from_a_line() -> None:
    from benchmarks.sizing_tables import tables

    page = PAGE.read_text("utf-8")
    for name, text in tables().items():
        assert text in page, f"{name}: python -m benchmarks.sizing_tables"
    tabled = {line for text in tables().values() for line in text.splitlines()}
    numbers = [line for line in page.splitlines() if line.startswith("| ") and line not in tabled]
    assert not [line for line in numbers if line.removeprefix("| ")[0].isdigit()], "a row of figures typed by hand"
