"""The real graph: two tiny random models in vLLM under Ray Data. Random weights write nonsense; no row may get lost."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import RunConfig
from adamllm_ray.data.record import SYNTHESIZED_SCHEMA
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import FingerprintMismatch, ModelError, SourceError
from adamllm_ray.synthesis import pipeline
from adamllm_ray.synthesis.watch import Watch, ledger_files
from tests.synthesis.fakes import FakeMaker, config_for, png, write_ingest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS: list[dict[str, Any]] = [
    *({"image": png(40 * number, number), "caption": f"a circle {number}"} for number in range(24)),
    {"image": b"these bytes are no image", "caption": "damaged after ingest"},
    {"image": None, "caption": "never there", "verdict": "image_missing"},
    {"image": png(0), "caption": "a circle 0", "verdict": "duplicate"},
    {"image": png(1), "caption": "long " * 400},
]


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    import ray

    from adamllm_ray.ray_runtime import prepare_environment, start_local

    prepare_environment()
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    start_local(num_cpus=4, object_store_memory=200 << 20, _temp_dir=folder)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def synthesized(folder: Path, vlm: Path, judge: Path) -> tuple[RunConfig, RunFolder, list[dict[str, Any]]]:
    config, run = config_for(folder, vlm, judge), RunFolder(str(folder))
    write_ingest(run, ROWS)
    pipeline.synthesize(config, run)
    table = pads.dataset(run.stage("synthesize").data, format="parquet").to_table()
    assert table.schema.names == SYNTHESIZED_SCHEMA.names
    return config, run, sorted(table.to_pylist(), key=lambda row: int(row["key"]))


@pytest.fixture(scope="module")
def first(ray_local: None, tmp_path_factory: pytest.TempPathFactory, tiny_vlm: Path, tiny_judge: Path) -> Any:
    return synthesized(tmp_path_factory.mktemp("first"), tiny_vlm, tiny_judge)


def test_every_row_is_there_with_a_verdict(first: Any) -> None:
    _, run, rows = first
    manifest = run.stage("synthesize").manifest()
    assert manifest is not None
    assert manifest.rows_in == len(ROWS) == len({row["id"] for row in rows})
    assert sum(manifest.verdicts.values()) == len(ROWS)
    assert [row["task_verdict"] for row in rows[24:]] == [*["not_synthesized"] * 3, "prompt_too_long"]
    assert [row["image"] for row in rows] == [row["image"] for row in ROWS]
    for row in rows[:24]:
        assert row["response_ids"]
        assert row["finish_reason"] in ("stop", "length")


def test_second_run_writes_the_same_text(
    first: Any, tmp_path_factory: pytest.TempPathFactory, tiny_vlm: Path, tiny_judge: Path
) -> None:
    _, run, rows = first
    _, again, same = synthesized(tmp_path_factory.mktemp("second"), tiny_vlm, tiny_judge)
    assert [row["response_ids"] for row in same] == [row["response_ids"] for row in rows]
    assert again.stage("synthesize").manifest().extra == run.stage("synthesize").manifest().extra  # type: ignore[union-attr]


def test_the_ledger_has_a_file_per_block_and_the_folder_can_be_watched(first: Any) -> None:
    """A block of 10 rows is the unit of resume; the incomplete last one may join another. More would cost more."""
    _, run, rows = first
    stage = run.stage("synthesize")
    sizes = [pq.read_metadata(file).num_rows for file in ledger_files(stage)]
    assert len(sizes) >= len(ROWS) // 10
    assert max(sizes) < 2 * 10
    seen = Watch(stage).look()
    assert seen.rows == seen.counted == len(ROWS)
    assert seen.verdicts == Counter(row["task_verdict"] for row in rows)


def test_changed_prompt_or_threshold_is_refused_and_named(first: Any) -> None:
    config, run, _ = first
    changed = config.model_copy(update={"judge": config.judge.model_copy(update={"threshold": 0.9})})
    with pytest.raises(FingerprintMismatch, match=r"judging\.threshold"):
        pipeline.synthesize(changed, run)


def test_engine_that_does_not_start_is_the_users_error(
    ray_local: None, tmp_path: Path, tiny_vlm: Path, tiny_judge: Path
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    write_ingest(run, ROWS[:3])
    broken = FakeMaker(str(tmp_path / "log"), broken="max_model_len is too large")
    with pytest.raises(ModelError, match="max_model_len is too large"):
        pipeline.synthesize(config_for(tmp_path / "run", tiny_vlm, tiny_judge), run, engine_maker=broken)
    assert run.stage("synthesize").manifest() is None


def test_needs_a_finished_ingest(tmp_path: Path, tiny_vlm: Path, tiny_judge: Path) -> None:
    with pytest.raises(SourceError, match="adamllm ingest"):
        pipeline.synthesize(config_for(tmp_path, tiny_vlm, tiny_judge), RunFolder(str(tmp_path)))
