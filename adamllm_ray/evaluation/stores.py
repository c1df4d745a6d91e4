"""What an evaluation keeps in its folder while it runs: its questions, and each model's answers as they come.

::

    evaluate/
    ├── questions/part-*.parquet         QUESTION_SCHEMA with images: what was asked, whatever becomes of the source
    └── answers/<model>/part-*.parquet   ANSWER_SCHEMA: an answer that is here is not asked for again
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from adamllm_ray import progress
from adamllm_ray.data import storage
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import RowAccountingError
from adamllm_ray.evaluation.tasks import QUESTION_SCHEMA, Question

T = TypeVar("T")

ROWS_PER_FILE = 512
ROWS_PER_CALL = 16  # one row group of the questions: what a replica takes at once, and what its death costs
FLUSH_ROWS, FLUSH_S = 256, 2.0  # answers wait in the driver for no longer than this

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),  # the prompt's text
        pa.field("answer", pa.string(), nullable=False),
        pa.field("prediction", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),  # image tokens included
        pa.field("output_tokens", pa.int32()),
        pa.field("latency_s", pa.float32()),  # at the engine, its batch beside it
        pa.field("backend", pa.string()),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("verdict_detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class QuestionGroup:
    """One row group of a question file, and whose rows these are."""

    file: str
    group: int
    ids: tuple[str, ...]


class QuestionStore:
    """The questions of one evaluation."""

    def __init__(self, stage: StageFolder) -> None:
        self._place = stage.place.child("questions")
        self._done = stage.place.child("questions.json")

    def fill(self, questions: Iterable[Question]) -> tuple[int, int]:
        """Write them once; a store that is full stays as it is. Returns (questions, those that can be asked)."""
        found = storage.read_small(self._done)
        if found is not None:
            counts = json.loads(found)
            return int(counts["count"]), int(counts["usable"])
        storage.remove_folder(self._place)
        count = usable = 0
        with progress.task("questions") as bar:
            for number, rows in enumerate(chunks(questions, ROWS_PER_FILE)):
                table = pa.Table.from_pylist([question.row() for question in rows], schema=QUESTION_SCHEMA)
                write_table(self._place.child(f"part-{number:05}.parquet"), table, row_group_size=ROWS_PER_CALL)
                count += len(rows)
                usable += sum(question.verdict is Verdict.OK for question in rows)
                bar.update(count)
        storage.write_small(self._done, json.dumps({"count": count, "usable": usable}).encode())
        return count, usable

    def groups(self) -> Iterator[QuestionGroup]:
        """Every row group, in order."""
        for name, _ in storage.list_files(self._place):
            place = self._place.child(name)
            with storage.storage_errors("read the questions", place.uri):
                file = pq.ParquetFile(place.path, filesystem=place.fs)
                ids = file.read(columns=["id"]).column("id").to_pylist()
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            start = 0
            for number, size in enumerate(sizes):
                yield QuestionGroup(place.uri, number, tuple(ids[start : start + size]))
                start += size

    def questions(self, wanted: Collection[str] | None = None, *, images: bool = False) -> list[Question]:
        """Those with these ids, or all, with or without their images."""
        columns = [name for name in QUESTION_SCHEMA.names if images or name != "image"]
        place = self._place
        known: dict[Any, Any] = {}  # the same hundred choices of thousands of questions are kept once
        found: list[Question] = []
        with storage.storage_errors("read the questions", place.uri):
            data = pads.dataset(place.path, filesystem=place.fs, format="parquet", schema=QUESTION_SCHEMA)
            for batch in data.to_batches(columns=columns):
                for row in batch.to_pylist():
                    if wanted is None or row["id"] in wanted:
                        choices = row["choices"] and tuple(row["choices"])
                        row |= {"choices": known.setdefault(choices, choices), "verdict": Verdict(row["verdict"])}
                        found.append(Question(**({"image": None} | row)))
        return found


class AnswerStore:
    """The answers of one model so far.

    An answer is settled unless the engine failed on it: after a restart such a question is asked again, and the later
    answer counts.
    """

    def __init__(self, stage: StageFolder, model: str) -> None:
        self._place = stage.place.child(f"answers/{model}")
        self._rows: dict[str, dict[str, Any]] = {}
        self._waiting: list[pa.Table] = []
        self._flushed = time.monotonic()
        names = [name for name, _ in storage.list_files(self._place)]
        with storage.storage_errors("read the answers", self._place.uri):
            for name in names:
                place = self._place.child(name)
                table = pq.read_table(place.path, filesystem=place.fs, schema=ANSWER_SCHEMA)
                self._rows |= {row["question_id"]: row for row in table.to_pylist()}
        self._next = 1 + int(names[-1].split("-")[1].split(".")[0]) if names else 0
        self.settled = {name for name, row in self._rows.items() if row["verdict"] != Verdict.ENGINE_ERROR}

    def add(self, answers: pa.Table) -> None:
        """Keep these rows; on disk soon, at the latest with `flush`.

        Raises:
            RowAccountingError: one of them was answered before.
        """
        for row in answers.to_pylist():
            name = row["question_id"]
            if name in self.settled:
                raise RowAccountingError(f"question {name!r} was answered twice by one model")
            self._rows[name] = row
            self.settled.add(name)
        self._waiting.append(answers)
        waiting = sum(table.num_rows for table in self._waiting)
        if waiting >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            write_table(self._place.child(f"part-{self._next:06}.parquet"), pa.concat_tables(self._waiting))
            self._next += 1
        self._waiting = []
        self._flushed = time.monotonic()

    def rows(self) -> list[dict[str, Any]]:
        """One per question that was answered, by id."""
        return [self._rows[name] for name in sorted(self._rows)]


def write_table(place: storage.Location, table: pa.Table, row_group_size: int | None = None) -> None:
    """A small Parquet file, whole or not at all."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    with storage.storage_errors("write evaluation rows", place.uri):
        storage.make_folder(storage.Location(place.fs, place.path.rpartition("/")[0], place.uri, place.local))
        storage.write_small(place, sink.getvalue())


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one of what is left, without reading ahead."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
