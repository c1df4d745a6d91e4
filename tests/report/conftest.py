"""A made-up run folder: real manifests and Parquet through RunFolder, invented rows and scores."""

from __future__ import annotations

import io
import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adamllm_ray.config import parse_config
from adamllm_ray.data.record import SYNTHESIZED_SCHEMA
from adamllm_ray.data.run import RunFolder
from adamllm_ray.evaluation.baselines import Baseline
from adamllm_ray.evaluation.scores import summarise

HOSTILE = "</p><script>alert(1)</script><img src=http://evil.example/x.png onerror=alert(2)> {{ 7*7 }} \ud800".replace(
    "\ud800", "\u202e"
)
TYPES = ("water_side", "land_areas", "island", "lake_or_sea", "higher_half", "climate")


def _picture(seed: int) -> bytes:
    """A 60 x 60 coast: water and land divided by a wavy line."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:60, 0:60] / 60
    land = x + 0.2 * np.sin(6 * y + seed) > rng.uniform(0.3, 0.7)
    pixels = np.where(land[..., None], rng.integers(60, 160, 3), [20, 40, 90]) + rng.normal(0, 6, (60, 60, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def made_up_row(i: int) -> dict:
    rng = random.Random(i)
    side = rng.choice(["left", "right", "top", "bottom"])
    verdict = rng.choices(
        ["kept", "judged_inconsistent", "judged_open", "response_unparsable", "not_synthesized"], [60, 20, 5, 10, 5]
    )[0]
    row = dict.fromkeys(SYNTHESIZED_SCHEMA.names) | {
        "id": f"{i:032x}",
        "source": "made-up",
        "key": str(i),
        "image": None if verdict == "not_synthesized" else _picture(i),
        "caption": f"The water is on the {side}. There are two land areas. Half of the image is water.",
        "meta": "{}",
        "verdict": "image_missing" if verdict == "not_synthesized" else "ok",
        "task_verdict": verdict,
        "finish_reason": "stop",
    }
    if verdict == "not_synthesized":
        return row | {"verdict_detail": "no such file: chips/0001.png"}
    if verdict == "response_unparsable":
        return row | {"response": "Answer with a precise response.<|eot_id|> the the water"}
    yes = {"kept": 0.94, "judged_inconsistent": 0.12, "judged_open": 0.2}[verdict] * rng.uniform(0.8, 1.05)
    no = (1 - yes) * (0.8 if verdict != "judged_open" else 0.1)
    return row | {
        "instruction": "On which side is the water?",
        "informative": f"Looking at the image, the water lies on the {side} side.",
        "precise": side if verdict == "kept" else "top",
        "judge_yes": yes,
        "judge_no": no,
        "judge_open": 1 - yes - no,
    }


def _loss(i: int) -> dict:
    loss = 3 * math.exp(-i / 40) + 0.5 + 0.1 * math.sin(i)
    kinds = {"caption": [loss + 0.4, 90], "replay:general": [0.8, 9]} | ({"task": [loss - 0.3, 60]} if i % 3 else {})
    return {"step": i + 1, "loss": loss, "lr": 1e-3 * (1 - i / 160), "grad_norm": 1 + math.cos(i) / 4, "kinds": kinds}


def _scores() -> dict:
    rng = np.random.default_rng(0)
    rows, values = [], {}
    for t, name in enumerate(TYPES):
        for i in range(80):
            key = f"{t}-{i:03}"
            base, adapted = rng.random() < 0.35 + 0.04 * t, rng.random() < (0.82 - 0.05 * t if t < 5 else 0.5)
            values[key] = int(rng.random() < 0.4)
            for model, right in (("base", base), ("adapted", adapted)):
                parsed = bool(right or rng.random() < 0.9)
                rows.append(
                    {
                        "question_id": key,
                        "model": model,
                        "task": "pocket",
                        "type": name,
                        "metric": "auto",
                        "verdict": "ok",
                        "score_strict": int(right),
                        "parsed_strict": parsed,
                        "score_paper": int(right),
                        "parsed_paper": parsed,
                    }
                )
    of_modes = {"strict": values, "paper": values}
    baselines = [Baseline("majority", "train", {}, of_modes), Baseline("colour", "train", {}, of_modes)]
    about = {"title": "pocket", "general": False, "split": "all rows", "protocol": "zero-shot, at most 48 tokens"}
    return summarise(rows, baselines, tasks={"pocket": about})


@pytest.fixture
def hostile():
    """The text that some captions, questions and answers of ``full_run`` hold."""
    return HOSTILE


@pytest.fixture
def config(tmp_path):
    return parse_config({"run": {"name": "made-up", "output": str(tmp_path / "run")}})


@pytest.fixture
def empty_run(config):
    return RunFolder(config.run.output)


@pytest.fixture
def full_run(empty_run):
    """All four stages finished; some records' texts are hostile."""
    return fill_run(empty_run)


def fill_run(empty_run, rows=None):
    """Finish all four stages. Without ``rows``, 240 made-up ones, 40 of which are hostile."""
    if rows is None:
        rows = [made_up_row(i) for i in range(240)]
        for row in rows[:40]:
            row["caption"] = HOSTILE
            if row["instruction"]:
                row |= {"instruction": HOSTILE, "informative": HOSTILE, "precise": HOSTILE}
    _finish(empty_run, "ingest", rows, "verdict", 4.2)
    _finish(empty_run, "synthesize", rows, "task_verdict", 95.0)
    train = empty_run.stage("train")
    train.begin({"x": 1})
    losses = [_loss(i) for i in range(160)]
    shares = {
        "both": {"requested": 0.65, "realised": 0.66, "count": 152},
        "untasked": {"requested": 0.35, "realised": 0.34, "count": 78},
    }
    part = {"part": "language_model", "parameters": 1_200_000, "trainable": 1_200_000, "learning_rate": 2e-5}
    extra = {"losses": losses, "parts": [part], "shares": shares, "model": "train/model"}
    extra["speed"] = {"examples_per_second": 12.34, "tokens_per_second": 34567.8, "padding": 0.071, "data_wait": 0.004}
    extra["speed"] |= {"seconds": 120.0, "inputs": 4_000_000, "flops": 1e15, "mfu": 0.412}
    train.finish(rows_in=len(rows), verdicts={"ok": len(rows) - 10, "image_missing": 10}, extra=extra, seconds=139.8)
    evaluate = empty_run.stage("evaluate")
    evaluate.begin({"x": 1})
    evaluate.finish(rows_in=960, verdicts={"ok": 960}, extra={"scores": _scores()}, seconds=61)
    return empty_run


def _finish(run, name, rows, column, seconds):
    stage = run.stage(name)
    stage.begin({"x": 1})
    run.fs.create_dir(stage.data, recursive=True)
    table = pa.Table.from_pylist(rows, schema=SYNTHESIZED_SCHEMA)
    pq.write_table(table, f"{stage.data}/part-0.parquet", filesystem=run.fs)
    verdicts: dict[str, int] = {}
    for row in rows:
        verdicts[row[column]] = verdicts.get(row[column], 0) + 1
    stage.finish(rows_in=len(rows), verdicts=verdicts, seconds=seconds)
