"""How finished evaluations asked their tasks, and where two of them did not ask in the same way.

    protocol_lines(runs, tasks)       one line per task, for beside its scores
    differences(runs, tasks)          what makes their figures hard to compare, in sentences
    check_contents(runs, asked)       refuses another image, or other choices, under the same question id

A score means little without its protocol: another token limit, backend or dtype moves it, and no model got better.
Such differences are told; other images or choices under one id are other questions, and are refused as those are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow.dataset as pads
import pyarrow.parquet as pq

from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.errors import SourceError, foreign

ROWS_AT_ONCE = 64  # questions with their images
SETTINGS = {  # of the evaluation's fingerprint -> in words
    "backend": "evaluation.backend",
    "dtype": "evaluation.engine.dtype",
    "max_model_len": "evaluation.engine.max_model_len",
    "images": "data.images (limits)",
    "code": "the version of the code that reads and scores answers",
}
OF_TASK = {
    "split": "split",
    "protocol": "protocol",
    "general": "whether it is a general task",
    "backends": "what ran the model",
}


def protocol_lines(runs: Sequence[str], tasks: Iterable[str]) -> list[str]:
    """Split and protocol of each task, as the first run that asked it says."""
    known = [_tasks(run) for run in runs]
    lines = []
    for task in tasks:
        said: Mapping[str, Any] = next((one[task] for one in known if task in one), {})
        split, how = (foreign(said.get(key, "not told")) for key in ("split", "protocol"))
        ran = said.get("backends")
        lines.append(f"{foreign(task, 80)}: split: {split}; {how}{f'; run by {foreign(ran)}' if ran else ''}")
    return lines


def differences(runs: Sequence[str], tasks: Iterable[str]) -> list[str]:
    """What these runs did differently; a setting that a run does not tell is not compared."""
    told = []
    known = {run: _tasks(run) for run in dict.fromkeys(runs)}
    for task in tasks:
        for key, words in OF_TASK.items():
            found = {run: one[task][key] for run, one in known.items() if key in one.get(task, {})}
            told += _differing(f"{foreign(task, 80)}: {words}", found)
    prints = {run: _fingerprint(run) for run in known}
    for key, words in SETTINGS.items():
        told += _differing(words, {run: one[key] for run, one in prints.items() if key in one})
    return told


def check_contents(runs: Sequence[str], asked: Collection[str]) -> list[str]:
    """Compare images and choices of the questions with these ids. Returns what could not be compared.

    Raises:
        SourceError: a question has another image or other choices in another run.
        StorageError: a run cannot be read.
    """
    first: dict[str, tuple[str, bytes, str]] = {}
    told = []
    for run in dict.fromkeys(runs):
        seen = False
        for name, image, choices in _contents(RunFolder(run).stage("evaluate"), asked, many=len(set(runs)) > 1):
            seen = True
            other, *known = first.setdefault(name, (run, image, choices))
            if known != [image, choices]:
                what = "image" if known[0] != image else "list of choices"
                raise SourceError(
                    f"question {foreign(name, 80)!r} has another {what} in {foreign(run)} than in {foreign(other)}: "
                    "these runs were evaluated on different tasks and cannot be compared"
                )
        if not seen and len(set(runs)) > 1:
            told.append(f"whether {foreign(run)} had the same images and choices cannot be told: it kept no questions")
    return told


def _contents(stage: StageFolder, asked: Collection[str], *, many: bool) -> Iterable[tuple[str, bytes, str]]:
    """(id, digest of the image, choices) of questions that the run kept; nothing where there is nothing to compare."""
    place = stage.place.child("questions")
    if not many or not storage.list_files(place):
        return
    with storage.storage_errors("read the questions", place.uri):
        data = pads.dataset(place.path, filesystem=place.fs, format="parquet")
        for batch in data.to_batches(columns=["id", "image", "choices"], batch_size=ROWS_AT_ONCE, batch_readahead=1):
            for row in batch.to_pylist():
                if row["id"] in asked:
                    digest = hashlib.blake2b(row["image"] or b"", digest_size=16).digest()
                    yield row["id"], digest, json.dumps(row["choices"] or [])


def _tasks(run: str) -> dict[str, dict[str, Any]]:
    """What a run's evaluation says of each of its tasks, what ran the models included."""
    stage = RunFolder(run).stage("evaluate")
    manifest = stage.manifest()
    scores = (manifest.extra.get("scores") if manifest else None) or {}
    asked = _fingerprint(run).get("tasks") or {}
    found = {name: {**(asked.get(name) or {}), **task} for name, task in (scores.get("tasks") or {}).items()}
    for name, backends in _backends(stage).items():
        found.setdefault(name, {})["backends"] = ", ".join(sorted(backends))
    return found


def _backends(stage: StageFolder) -> dict[str, set[str]]:
    """Task -> 'vllm' or 'transformers', as the answers say."""
    found: dict[str, set[str]] = {}
    with storage.storage_errors("read the evaluation", stage.uri):
        for path in stage.parquet_files():
            file = pq.ParquetFile(path, filesystem=stage.fs)
            if "backend" in file.schema_arrow.names:
                for row in (
                    file.read(columns=["task", "backend"]).group_by(["task", "backend"]).aggregate([]).to_pylist()
                ):
                    if row["backend"]:
                        found.setdefault(row["task"], set()).add(row["backend"])
    return found


def _fingerprint(run: str) -> Mapping[str, Any]:
    manifest = RunFolder(run).stage("evaluate").manifest()
    return manifest.fingerprint if manifest else {}


def _differing(what: str, found: Mapping[str, Any]) -> list[str]:
    """A sentence where the runs do not all say the same."""
    values: dict[str, list[str]] = {}
    for run, value in found.items():
        values.setdefault(json.dumps(value, sort_keys=True, default=str), []).append(run)
    if len(values) < 2:
        return []
    sides = "; ".join(f"{foreign(value, 120)} in {', '.join(map(foreign, runs))}" for value, runs in values.items())
    return [f"{what} differs: {sides}"]
