"""Judging 100,000 records: rows per second and memory, of the texts and of the images.

    python -m benchmarks.quality [ROWS]            some minutes on two cores

A synthesis of so many rows (JPEGs of 224 pixels, 1,000 different ones, made here) is profiled, and compared with an
evaluation set of 2,000 questions. `*_peak_mib` is how far the resident memory of the process rises above what it was
before that part began: what it would be for ten times the rows, but for 8 bytes per kept question.
"""

from __future__ import annotations

import io
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data.record import SYNTHESIZED_SCHEMA
from adamllm_ray.data.run import RunFolder
from adamllm_ray.quality.contamination import EvaluationSets, find_contamination
from adamllm_ray.quality.profile import Profile
from benchmarks.measure import finish, say

IMAGES, SIDE, ROWS_PER_FILE, QUESTIONS = 1000, 224, 1024, 2000
SUBJECTS = ("heart", "river", "roof", "spoon", "valve", "forest", "label", "bridge", "artery", "crop")
ASKED = ("What is left of the {}?", "Is the {} larger than usual?", "How many {}s are there?", "Where is the {}?")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = parse_config(
            {
                "run": {"output": str(folder / "run")},
                "contamination": {"against": [{"name": "test", "path": str(folder / "test.parquet")}]},
            }
        )
        run = RunFolder.of(config.run)
        jpegs = [picture(seed) for seed in range(IMAGES)]
        write_rows(run, rows, jpegs)
        write_test(folder / "test.parquet", jpegs)
        say(f"{rows} rows, JPEGs of {sum(map(len, jpegs)) // IMAGES} bytes")
        metrics = measured("profile", rows, lambda: Profile(0).read(run.stage("synthesize")).result())
        metrics |= measured("contamination", rows, lambda: contamination(config, run))
    finish("quality", {"rows": rows} | metrics)


def contamination(config: RunConfig, run: RunFolder) -> None:
    found = find_contamination(config, run, EvaluationSets.load(config))
    say(f"found {found['counts']}")


def measured(name: str, rows: int, work: Callable[[], Any]) -> dict[str, float]:
    """Rows per second and MiB above the start, sampled ten times a second."""
    before, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return {f"{name}_rows_per_s": rows / seconds, f"{name}_peak_mib": max(0.0, peak[0] - before)}


def resident() -> float:
    """MiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = sum(rng.normal(size=(3, 1, 1)) * np.sin(rng.uniform(1, 20) * x + rng.uniform(1, 20) * y) for _ in range(6))
    pixels = (128 + 45 * waves + rng.normal(0, 8, (3, SIDE, SIDE))).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_rows(run: RunFolder, rows: int, jpegs: list[bytes]) -> None:
    stage = run.stage("synthesize")
    stage.begin({})
    run.fs.create_dir(stage.data, recursive=True)
    for start in range(0, rows, ROWS_PER_FILE):
        made = [row(number, jpegs) for number in range(start, min(rows, start + ROWS_PER_FILE))]
        table = pa.Table.from_pylist(made, SYNTHESIZED_SCHEMA)
        pq.write_table(table, f"{stage.data}/part-{start:07}.parquet")
    kept = sum(number % 4 != 0 for number in range(rows))
    stage.finish(rows_in=rows, verdicts={"kept": kept, "judged_inconsistent": rows - kept}, seconds=1.0)


def row(number: int, jpegs: list[bytes]) -> dict[str, Any]:
    subject = SUBJECTS[number % len(SUBJECTS)]
    kept = number % 4 != 0
    return dict.fromkeys(SYNTHESIZED_SCHEMA.names) | {
        "id": f"{number:032x}",
        "source": "made",
        "key": str(number),
        "image": jpegs[number % IMAGES],
        "width": SIDE,
        "height": SIDE,
        "caption": f"Picture {number}: a {subject} beside two others, seen from above, under even light. " * 2,
        "verdict": "ok",
        "task_verdict": "kept" if kept else "judged_inconsistent",
        "instruction": ASKED[number % 7 % 4].format(f"{subject} {number}"),
        "informative": f"The {subject} stands beside {number % 9} others and is a little larger than they are. " * 2,
        "precise": str(number % 9),
        "judge_yes": 0.9 if kept else 0.1,
        "judge_no": 0.05,
        "judge_open": 0.05,
    }


def write_test(path: Path, jpegs: list[bytes]) -> None:
    rows = [
        {
            "image": jpegs[number] if number < 20 else picture(100_000 + number),
            "question": ASKED[number % 4].format(f"{SUBJECTS[number % 10]} {number * 50}"),
            "answer": "1",
        }
        for number in range(QUESTIONS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


if __name__ == "__main__":
    main()
