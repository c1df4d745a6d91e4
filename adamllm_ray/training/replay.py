"""Replay sources: conversations from outside the run, checked once and copied beside the run's own data.

A source is ShareGPT: per record ``messages`` (or ``conversations``) and optionally ``images``. A record that cannot
be used gets a verdict, which is counted; the others are written to ``train/replay/NAME.parquet`` with their image.
The run's own seed data may be one of the sources (``mixture.seed_tasks``): general tasks in the words of training.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.config import ConversationSection, ImageLimits, MixtureSection, ReplaySource, S3Section
from adamllm_ray.data import images, storage
from adamllm_ray.data.identity import read_columns
from adamllm_ray.data.jsonfile import Damaged, json_records
from adamllm_ray.data.record import record_id
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.sources import ImageFolder
from adamllm_ray.data.sources.places import source_errors
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused, SourceError
from adamllm_ray.synthesis.triplets import triplets
from adamllm_ray.training.catalog import REPLAY_SCHEMA, replay_row
from adamllm_ray.training.wording import task_text

ROWS_PER_GROUP = 64
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


@dataclass(slots=True)
class ReplayFiles:
    """Parquet files per source, and how many records of each had which verdict."""

    files: dict[str, list[str]] = field(default_factory=dict)
    verdicts: dict[str, dict[str, int]] = field(default_factory=dict)


SEED_TASKS = "seed_tasks"  # the source that is the run's own seed data


def with_seed_tasks(mixture: MixtureSection) -> MixtureSection:
    """The mixture with its seed tasks as one more replay source."""
    if not mixture.seed_tasks or any(source.name == SEED_TASKS for source in mixture.replay):
        return mixture
    source = ReplaySource(name=SEED_TASKS, path="", weight=mixture.seed_tasks)
    return mixture.model_copy(update={"replay": [*mixture.replay, source]})


def copy_replay(
    sources: list[ReplaySource],
    limits: ImageLimits,
    stage: StageFolder,
    s3: S3Section | None = None,
    seed: SeedTasks | None = None,
) -> ReplayFiles:
    """Copy all sources. Raises SourceError for one that cannot be read at all, or has no usable record."""
    result = ReplayFiles()
    for source in sources:
        if source.name == SEED_TASKS and seed is not None:
            _copy_seed(seed, stage, result)
            continue
        counts: Counter[str] = Counter()
        place = storage.resolve(source.path, s3)
        folder = ImageFolder(source.image_folder or place.uri.rpartition("/")[0], limits.max_bytes, s3)
        rows = []
        with source_errors(place.uri):
            for key, record in json_records(place):
                row = _row(f"{source.name}:{key}", record, folder, limits)
                counts[row["verdict"]] += 1
                rows.append(row)
        if not counts[Verdict.OK]:
            raise SourceError(f"mixture.replay '{source.name}': no usable record in {source.path} ({dict(counts)})")
        target = stage.place.child(f"replay/{source.name}.parquet")
        storage.make_folder(stage.place.child("replay"))
        pq.write_table(
            pa.Table.from_pylist(rows, REPLAY_SCHEMA), target.path, filesystem=stage.fs, row_group_size=ROWS_PER_GROUP
        )
        result.files[source.name] = [target.path]
        result.verdicts[source.name] = dict(counts)
    return result


@dataclass(frozen=True, slots=True)
class SeedTasks:
    """The finished seed stage, and how tasks are worded."""

    stage: StageFolder
    wording: ConversationSection
    seed: int


def _copy_seed(tasks: SeedTasks, stage: StageFolder, result: ReplayFiles) -> None:
    """The first question with both answers of every training image that is not blank, as a conversation."""
    columns = ["id", "image", "width", "height", "turns", "split", "blank", "verdict"]
    target = stage.place.child(f"replay/{SEED_TASKS}.parquet")
    storage.make_folder(stage.place.child("replay"))
    counts: Counter[str] = Counter()
    with pq.ParquetWriter(target.path, REPLAY_SCHEMA, filesystem=stage.fs) as writer:
        for batch in read_columns(tasks.stage.fs, tasks.stage.parquet_files(), columns):
            rows = [made for row in batch.to_pylist() if (made := _seed_row(row, tasks)) is not None]
            counts[Verdict.OK.value] += len(rows)
            for start in range(0, len(rows), ROWS_PER_GROUP):
                writer.write_table(pa.Table.from_pylist(rows[start : start + ROWS_PER_GROUP], REPLAY_SCHEMA))
    if not counts[Verdict.OK]:
        raise SourceError("mixture.seed_tasks: the seed data have no question with both answers")
    result.files[SEED_TASKS], result.verdicts[SEED_TASKS] = [target.path], dict(counts)


def _seed_row(row: dict[str, Any], tasks: SeedTasks) -> dict[str, Any] | None:
    if row["verdict"] != Verdict.OK or row["split"] != "train" or row["blank"]:
        return None
    texts = [text for _, text in json.loads(row["turns"])][2:]
    found = triplets(list(zip(texts[::2], texts[1::2], strict=True)), "normalised")
    if not found:
        return None
    task = {"instruction": found[0].question, "informative": found[0].informative, "precise": found[0].precise}
    user, assistant = task_text(task, tasks.wording, seed=tasks.seed, id=row["id"])
    talk = [("user", user), ("assistant", assistant)]
    return replay_row(row["id"], row["image"], talk, row["width"], row["height"])


def _row(key: str, record: Any, folder: ImageFolder, limits: ImageLimits) -> dict[str, Any]:
    try:
        if isinstance(record, Damaged) or not isinstance(record, dict):
            raise ImageRefused(Verdict.ROW_UNREADABLE)
        turns = _turns(record)
        image, *size = _image(record, folder, limits)
    except ImageRefused as refused:
        return replay_row(record_id(None, "", key), None, []) | {"verdict": refused.verdict.value}
    return replay_row(record_id(image, turns[0][1], key), image, turns, *size)


def _turns(record: dict[str, Any]) -> list[tuple[str, str]]:
    messages = record.get("messages", record.get("conversations"))
    turns = []
    for message in messages if isinstance(messages, list) else []:
        role = message.get("role", message.get("from")) if isinstance(message, dict) else None
        text = message.get("content", message.get("value")) if isinstance(message, dict) else None
        if role not in _ROLES or not isinstance(text, str):
            raise ImageRefused(Verdict.ROW_UNREADABLE)
        turns.append((_ROLES[role], text.replace("<image>", "").strip()))
    if not any(role == "assistant" and text for role, text in turns):
        raise ImageRefused(Verdict.ROW_UNREADABLE)
    return turns


def _image(
    record: dict[str, Any], folder: ImageFolder, limits: ImageLimits
) -> tuple[bytes | None, int | None, int | None]:
    """(encoded bytes, width, height), all None for a text."""
    named = record.get("images", record.get("image"))
    first = named[0] if isinstance(named, list) and named else named
    if not isinstance(first, str):
        return None, None, None
    data = folder.read(first)
    return data, *images.examine(data, limits)[1].size
