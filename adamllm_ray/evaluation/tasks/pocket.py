"""The test sets of the quickstart, closed and open questions about attributes that can be verified.

Satellite chips are its domain. The general pictures are what the pocket models come from: asked before and after, as
``evaluation.general: [{name: pocket_general}]``, they tell what the adaptation cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from adamllm_ray.evaluation.tasks import Question

GENERAL_PICTURES = 150  # with up to three questions each


def pocket_questions(split: str | None = None) -> Iterator[Question]:
    """Questions about the test regions, or those of validation; no chip of theirs touches one that was trained on."""
    from adamllm_ray.pocket.domain import benchmark_questions, validation_questions

    yield from _convert(validation_questions() if split == "validation" else benchmark_questions())


def pocket_train_questions() -> Iterator[Question]:
    """The same kinds of questions about the train region: never shown to a model, only to the two baselines."""
    from adamllm_ray.pocket.domain import train_questions

    yield from _convert(train_questions())


def pocket_general_questions() -> Iterator[Question]:
    """Questions about general pictures that no pocket model was trained on: those of the base model's own figures."""
    from adamllm_ray.pocket.curriculum import held_out_questions

    for number, (picture, asked, kind) in enumerate(held_out_questions(GENERAL_PICTURES)):
        yield Question(f"general-{number:04}", picture, asked.text, asked.precise, kind, asked.kind)


def _convert(items: Iterable[Any]) -> Iterator[Question]:
    for item in items:
        choices = tuple(item.choices) if item.choices else None
        yield Question(item.id, item.image_bytes, item.question, item.answer, item.type, item.kind, choices)
