"""The satellite test set of the quickstart: closed and open questions about attributes that can be verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from adamllm_ray.evaluation.tasks import Question


def pocket_questions(split: str | None = None) -> Iterator[Question]:
    """Questions about the test regions, or those of validation; no chip of theirs touches one that was trained on."""
    from adamllm_ray.pocket.domain import benchmark_questions, validation_questions

    yield from _convert(validation_questions() if split == "validation" else benchmark_questions())


def pocket_train_questions() -> Iterator[Question]:
    """The same kinds of questions about the train region: never shown to a model, only to the two baselines."""
    from adamllm_ray.pocket.domain import train_questions

    yield from _convert(train_questions())


def _convert(items: Iterable[Any]) -> Iterator[Question]:
    for item in items:
        choices = tuple(item.choices) if item.choices else None
        yield Question(item.id, item.image_bytes, item.question, item.answer, item.type, item.kind, choices)
