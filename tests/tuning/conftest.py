"""A finished synthesis with validation questions beside it, and a search over them with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.training.conftest import finished_synthesis, picture, synthesized_rows


def validation_file(folder: Path, count: int = 12, first: int = 100) -> Path:
    """Questions that a model with random weights answers at random, about pictures that nobody trains on."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(first, first + count):
        (folder / f"{number}.png").write_bytes(picture(number))
        answer = ("a circle", "yes", "no")[number % 3]
        row = {"id": f"v{number}", "image": f"{number}.png", "question": f"what is {number}?", "answer": answer}
        lines.append(json.dumps(row | {"type": "shape" if number % 2 else "colour"}))
    file = folder / "questions.jsonl"
    file.write_text("\n".join(lines))
    return file


def search_tree(output: Path | str, base: Path, validation: Path, **tuning: Any) -> dict[str, Any]:
    """The configuration of a search, as plain data: one worker, four steps a trial, the transformers backend."""
    section: dict[str, Any] = {
        "sources": {"caption": {}, "task": {}},
        "validation": [{"name": "shapes", "path": str(validation), "metric": "recall"}],
        "trials": 4,
        "start_trials": 1,
        "searcher": "random",
        "concurrent": 1,
    }
    training = {
        "workers": 1,
        "global_batch": 8,
        "micro_batch": 4,
        "max_length": 256,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "zero_stage": 0,
        "max_steps": 4,
        "epochs": 4,
        "checkpoint_every": 2,
        "trackers": [],
    }
    return {
        "run": {"output": str(output), "seed": 7},
        "models": {"base": str(base)},
        "mixture": {"untasked": 0.0},
        "training": training,
        "evaluation": {
            "backend": "transformers",
            "max_new_tokens": 4,
            "bootstrap_samples": 100,
            "engine": {"max_model_len": 256, "max_num_seqs": 8},
        },
        "tuning": section | tuning,
    }


def ready_to_search(folder: Path) -> Path:
    """A finished synthesis in ``folder``/run; returns the file of validation questions."""
    finished_synthesis(folder / "run", synthesized_rows())
    return validation_file(folder / "validation")
