"""Where questions come from: a small file per benchmark, the pocket test set, and tables of your own.

    for question in load_questions(config.evaluation, config.data.s3): ...

A benchmark is one `layout.Benchmark` in a module of its name, ``TASK``. A question that cannot be used is still
yielded, with a verdict that says why: it is counted, not asked.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from adamllm_ray.config import AskedTask, EvaluationSection, ImageLimits, S3Section, TaskSection
from adamllm_ray.config.evaluation import MAX_NEW_TOKENS, POCKET
from adamllm_ray.data.draws import uniform
from adamllm_ray.data.verdicts import Verdict

if TYPE_CHECKING:
    from adamllm_ray.evaluation.tasks.files import TaskSource
    from adamllm_ray.evaluation.tasks.layout import Benchmark

Kind = Literal["open", "closed"]

QUESTION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("max_new_tokens", pa.int32(), nullable=False),
        pa.field("meta", pa.string()),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("verdict_detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one image. Field for field a row of QUESTION_SCHEMA.

    ``type`` is the column of the score table that it counts in, ``metric`` how its answer is scored. ``id`` is unique
    over all tasks; ``choices`` are the possible answers, or the names that are looked for in an answer.
    """

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
    task: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS

    def row(self) -> dict[str, Any]:
        """As a row of QUESTION_SCHEMA."""
        values = {name: getattr(self, name) for name in QUESTION_SCHEMA.names}
        return values | {"choices": list(self.choices) if self.choices else None, "verdict": str(self.verdict)}


def load_questions(
    section: EvaluationSection, s3: S3Section | None = None, limits: ImageLimits | None = None
) -> Iterator[Question]:
    """The questions of every task, ids made unique, each task cut to its limit by hash (not by position).

    A limit takes the same questions in every run, whatever its seed: runs of several seeds are pooled by question.
    ``s3`` says how to reach a task on ``s3://``, ``limits`` how large an image file may be.

    Raises:
        SourceError: a task as a whole cannot be read.
    """
    of_domain = sum(not asked.general for asked in section.asked)  # general ones have a table of their own
    for asked in section.asked:
        alone = of_domain == 1 and not asked.general
        limit = asked.task.limit or section.limit
        questions = _unique(_named(asked, section, task_questions(asked, s3, limits), alone=alone))
        if limit is None:
            yield from questions
        else:
            yield from heapq.nsmallest(limit, questions, key=lambda item: uniform(0, "question", item.id))


def task_source(asked: AskedTask, s3: S3Section | None = None, limits: ImageLimits | None = None) -> TaskSource:
    """The files of a task that does not ship with the package."""
    from adamllm_ray.evaluation.tasks.files import TaskSource

    names = benchmark(asked.task.name).folders if asked.task.benchmark else ()
    return TaskSource(asked.field, asked.task.path, asked.task.split, names, s3, limits or ImageLimits())


def task_digest(asked: AskedTask, s3: S3Section | None = None, limits: ImageLimits | None = None) -> str:
    """Of everything that the questions of a task (any that does not ship with the package) are made of."""
    beside = benchmark(asked.task.name).beside if asked.task.benchmark else ""
    return task_source(asked, s3, limits).digest(beside)


def benchmark(name: str) -> Benchmark:
    """The published benchmark that the configuration calls so."""
    import importlib

    found: Benchmark = importlib.import_module(f"{__name__}.{name}").TASK
    return found


def token_limit(task: TaskSection, section: EvaluationSection) -> int:
    """Tokens that an answer of this task may have."""
    usual = benchmark(task.name).max_new_tokens if task.benchmark else MAX_NEW_TOKENS
    return task.max_new_tokens or section.max_new_tokens or usual


def describe(asked: AskedTask, section: EvaluationSection, s3: S3Section | None = None) -> dict[str, Any]:
    """What has to be said beside the scores of a task: protocol, the split that was read, what the paper prints.

    Raises:
        SourceError: the files are no longer there.
    """
    task = asked.task
    split = None if task.shipped else task_source(asked, s3).split_read()
    found: dict[str, Any] = {"title": task.name, "general": asked.general, "split": split or "all rows"}
    if task.benchmark:
        known = benchmark(task.name)
        found |= {"title": known.title, "split": split or known.split, "release": known.release, "link": known.link}
        found["paper_rows"] = {known.label(column): count for column, count in known.rows.items()}
    how = f"zero-shot, greedy, image first, one turn, at most {token_limit(task, section)} tokens"
    return found | {"protocol": how}


def task_questions(
    asked: AskedTask, s3: S3Section | None = None, limits: ImageLimits | None = None
) -> Iterator[Question]:
    """All rows of one task, as it is read: ids and columns do not say yet which task they are of.

    Raises:
        SourceError: the task as a whole cannot be read.
    """
    if asked.task.shipped:
        from adamllm_ray.evaluation.tasks.pocket import pocket_general_questions, pocket_questions

        split = asked.task.split
        return pocket_questions(split) if asked.task.name == POCKET else pocket_general_questions()
    source = task_source(asked, s3, limits)
    if asked.task.benchmark:
        return benchmark(asked.task.name).questions(source)
    from adamllm_ray.evaluation.tasks.table import table_questions

    return table_questions(source, asked.task.metric or "auto")


def _named(
    asked: AskedTask, section: EvaluationSection, questions: Iterable[Question], *, alone: bool
) -> Iterator[Question]:
    """With the task's name in id and, where another task may have the same, in the column; and with its token limit."""
    task, tokens = asked.task, token_limit(asked.task, section)
    for one in questions:
        type_ = one.type if alone or task.benchmark else f"{task.name}: {one.type}"
        yield replace(one, id=f"{task.name}/{one.id}", task=task.name, type=type_, max_new_tokens=tokens)


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
