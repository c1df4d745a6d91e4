"""A finished synthesis whose rows are known, and pictures that are copies of each other."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adamllm_ray.config import parse_config
from adamllm_ray.data.record import SYNTHESIZED_SCHEMA
from adamllm_ray.data.run import RunFolder


def picture(seed, kind="PNG", side=96, **options):
    """A picture of a few waves; the same seed in another size or format is nearly the same picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:96, 0:96] / 96
    waves = sum(rng.normal(size=(3, 1, 1)) * np.sin(rng.uniform(1, 9) * x + rng.uniform(1, 9) * y) for _ in range(6))
    pixels = (128 + 45 * waves).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


def task(number, **changes):
    """A row of a synthesis: kept, unless ``changes`` say otherwise."""
    row = dict.fromkeys(SYNTHESIZED_SCHEMA.names) | {
        "id": f"{number:032x}",
        "source": "/secret/made-up.json",
        "key": f"secret-{number}",
        "image": picture(number),
        "width": 96,
        "height": 96,
        "caption": f"Picture {number} shows waves of three colours.",
        "meta": "{}",
        "verdict": "ok",
        "task_verdict": "kept",
        "instruction": f"How many waves are in picture {number}?",
        "informative": "Looking closely there are three waves.",
        "precise": "3",
        "judge_yes": 0.915,
        "judge_no": 0.045,
        "judge_open": 0.04,
    }
    return row | changes


def finish(run, name, rows, verdicts, schema=SYNTHESIZED_SCHEMA, rows_per_file=7):
    """A finished stage with these rows in several files."""
    stage = run.stage(name)
    stage.begin({"x": 1})
    run.fs.create_dir(stage.data, recursive=True)
    for start in range(0, len(rows), rows_per_file):
        table = pa.Table.from_pylist(rows[start : start + rows_per_file], schema=schema)
        pq.write_table(table, f"{stage.data}/part-{start:05}.parquet", filesystem=run.fs)
    stage.finish(rows_in=len(rows), verdicts=verdicts, seconds=1.0)


@pytest.fixture
def config(tmp_path):
    return parse_config(
        {"run": {"name": "waves", "output": str(tmp_path / "run")}, "data": {"path": "/secret/pairs.json"}}
    )


@pytest.fixture
def run(config):
    return RunFolder.of(config.run)
