"""Where questions come from. A task is a function that yields `Question`s; one small file per benchmark.

A question that cannot be used is still yielded, with a verdict that says why: it is counted, not asked.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa

from adamllm_ray.config import EvaluationSection, S3Section
from adamllm_ray.data.draws import uniform
from adamllm_ray.data.verdicts import Verdict

Kind = Literal["open", "closed"]

QUESTION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("meta", pa.string()),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("verdict_detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image. Field for field a row of QUESTION_SCHEMA."""

    id: str
    image: bytes | None
    question: str
    answer: str
    type: str
    kind: Kind
    choices: Sequence[str] | None = None
    meta: str | None = None
    verdict: Verdict = Verdict.OK
    verdict_detail: str | None = None
    metric: str = "auto"

    def row(self) -> dict[str, Any]:
        """As a row of QUESTION_SCHEMA."""
        values = {name: getattr(self, name) for name in QUESTION_SCHEMA.names}
        return values | {"choices": list(self.choices) if self.choices else None, "verdict": str(self.verdict)}


def load_questions(section: EvaluationSection, seed: int = 0, s3: S3Section | None = None) -> Iterator[Question]:
    """The questions of ``evaluation.task``, ids made unique, cut to ``evaluation.limit`` by hash (not by position).

    ``s3`` says how to reach a task on ``s3://``.

    Raises:
        SourceError: the task as a whole cannot be read.
    """
    questions: Iterable[Question]
    if section.task == "pocket":
        from adamllm_ray.evaluation.tasks.pocket import pocket_questions

        questions = pocket_questions()
    else:
        from adamllm_ray.evaluation.tasks.table import table_questions

        questions = table_questions(section.task, s3)
    questions = _unique(questions)
    if section.limit is None:
        yield from questions
    else:
        yield from heapq.nsmallest(section.limit, questions, key=lambda item: uniform(seed, "question", item.id))


def _unique(questions: Iterable[Question]) -> Iterator[Question]:
    """Answers are paired by id, so a second question with an id is marked as a duplicate and not asked."""
    seen: set[str] = set()
    for position, question in enumerate(questions):
        if question.id in seen:
            detail = f"the id {question.id!r} was used before"
            question = replace(
                question, id=f"{question.id}#{position}", verdict=Verdict.DUPLICATE, verdict_detail=detail
            )
        seen.add(question.id)
        yield question
