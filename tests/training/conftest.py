"""A finished synthesis of a few random chips, a private Ray, and pictures."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data import storage
from adamllm_ray.data.record import SYNTHESIZED_SCHEMA, record_id
from adamllm_ray.data.run import RunFolder
from tests.raylets import environment

ROWS = 24


def picture(number: int, side: int = 60, wide: int | None = None) -> bytes:
    """Noise, ``side`` pixels high and as many wide unless ``wide`` says otherwise."""
    pixels = np.random.default_rng(number).integers(0, 255, (side, wide or side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def synthesized_rows(count: int = ROWS) -> list[dict[str, Any]]:
    """Two thirds with a kept task, one row refused, one duplicate."""
    rows = []
    for number in range(count):
        caption = f"a red circle {number} left of a blue square"
        image = picture(number)
        row: dict[str, Any] = {field.name: None for field in SYNTHESIZED_SCHEMA}
        row |= {"id": record_id(image, caption, str(number)), "source": "test", "key": str(number), "image": image}
        row |= {"caption": caption, "verdict": "ok", "task_verdict": "judged_open"}
        if number % 3:
            row |= {"task_verdict": "kept", "instruction": f"what is {number}?"}
            row |= {"informative": f"a circle with number {number}", "precise": "a circle"}
        rows.append(row)
    rows[0] |= {"verdict": "image_missing", "image": None, "task_verdict": "not_synthesized"}
    rows[3] |= {"verdict": "duplicate", "task_verdict": "not_synthesized"}
    return rows


def finished_synthesis(output: Path | str, rows: list[dict[str, Any]]) -> RunFolder:
    run = RunFolder(str(output))
    stage = run.stage("synthesize")
    stage.begin({"made by": "a test"})
    storage.make_folder(stage.place.child("data"))
    half = len(rows) // 2
    for name, part in (("a", rows[half:]), ("b", rows[:half])):
        table = pa.Table.from_pylist(part, SYNTHESIZED_SCHEMA)
        pq.write_table(table, f"{stage.data}/{name}.parquet", row_group_size=5, filesystem=stage.fs)
    verdicts: dict[str, int] = {}
    for row in rows:
        verdicts[row["task_verdict"]] = verdicts.get(row["task_verdict"], 0) + 1
    stage.finish(rows_in=len(rows), verdicts=verdicts, seconds=0.0)
    return run


def training_config(output: Path | str, base: Path, **training: Any) -> RunConfig:
    section = {
        "workers": 2,
        "cpus_per_worker": 0.5,
        "epochs": 4,
        "global_batch": 8,
        "micro_batch": 2,
        "max_length": 256,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "checkpoint_every": 4,
    }
    tree = {"run": {"output": str(output), "seed": 7}, "models": {"base": str(base)}, "training": section | training}
    return parse_config(tree)


@pytest.fixture(scope="module")
def private_ray() -> Iterator[None]:
    with ray_of(2):
        yield


@contextmanager
def ray_of(cpus: int) -> Iterator[None]:
    """A Ray of this process with so many CPUs, whose workers do not use more threads than they have."""
    from adamllm_ray.ray_runtime import prepare_environment, start_local

    prepare_environment()
    import ray

    with tempfile.TemporaryDirectory(prefix="tr", dir="/tmp") as folder:
        with environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""):  # Ray's processes inherit it
            start_local(
                num_cpus=cpus,
                object_store_memory=128 << 20,
                logging_level="error",
                log_to_driver=False,
                _temp_dir=folder,
            )
        yield
        ray.shutdown()
