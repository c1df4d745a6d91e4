"""Your own questions: one row per question, in a Parquet or JSONL file, a folder of such, or a saved data set.

Columns: ``image`` (encoded bytes, a ``{bytes, path}`` struct, or a path relative to the file), ``question``,
``answer``, ``type``; optional ``id``, ``kind`` ("open" or "closed"; yes/no answers are closed by default), ``choices``
(list of strings), ``metric`` (else the task's, else "auto") and ``meta``. Question texts are asked as they are, so put
the choices into the text as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from string import ascii_uppercase
from typing import Any, cast

from adamllm_ray.config.evaluation import METRIC_NAMES
from adamllm_ray.errors import SourceError
from adamllm_ray.evaluation.metrics.names import unknown_names
from adamllm_ray.evaluation.tasks import Kind, Question
from adamllm_ray.evaluation.tasks.files import TaskSource
from adamllm_ray.evaluation.tasks.rows import Row, image, question_or_verdict, row_id, several, text, unreadable

REQUIRED = ("image", "question", "answer")
LETTERS = "ABCD"  # of choices that are not listed
OF_NAMES = ("names_recall", "names_f1")  # the answer is a list


def table_questions(source: TaskSource, metric: str) -> Iterator[Question]:
    """Questions of a table; ``metric`` is that of rows which do not say.

    Raises:
        SourceError: it cannot be read, or lacks a required column.
    """
    columns = source.columns()
    missing = [name for name in REQUIRED if columns is not None and name not in columns]
    if missing:
        raise SourceError(
            f"{source.field}: {source.path} lacks the column(s) {', '.join(missing)}; a table of your own has "
            "image, question, answer and type, and a released benchmark is named slake, pathvqa, ..."
        )
    folder = source.images()

    def make(row: Row, name: str, number: int) -> Question:
        asked, how = text(row, "question"), _metric(row, metric)
        answer = json.dumps(several(row, "answer"), ensure_ascii=False) if how in OF_NAMES else text(row, "answer")
        kind = _kind(row, answer)
        picture, meta = image(row.get("image"), folder), row.get("meta")
        return Question(
            id=row_id(name, picture, asked, number),
            image=picture,
            question=asked,
            answer=answer,
            type=str(row.get("type") or kind),
            kind=kind,
            choices=_choices(row, answer, how),
            meta=meta if meta is None or isinstance(meta, str) else json.dumps(meta, default=str),
            metric=how,
        )

    for number, row in enumerate(source.rows()):
        type_ = str(row.get("type") or "unreadable")
        yield question_or_verdict(row, number, type_, partial(make, number=number))


def _kind(row: Row, answer: str) -> Kind:
    kind = row.get("kind") or ("closed" if answer.strip(" .").lower() in ("yes", "no") else "open")
    if kind not in ("open", "closed"):
        raise unreadable(f"kind is {kind!r}, expected 'open' or 'closed'")
    return cast(Kind, kind)


def _metric(row: Row, usual: str) -> str:
    name = row.get("metric") or usual
    if name not in METRIC_NAMES:
        raise unreadable(f"metric is {str(name)[:80]!r}, expected one of {', '.join(METRIC_NAMES)}")
    return str(name)


def _choices(row: Row, answer: str, metric: str) -> tuple[str, ...] | None:
    """The listed choices. Raises RowError where no answer could be right."""
    value: Any = row.get("choices")
    if value and (not isinstance(value, list) or not all(isinstance(item, str) for item in value)):
        raise unreadable("'choices' is not a list of texts")
    known = tuple(value or ())
    if metric in OF_NAMES and known and (strange := unknown_names(answer, known)):
        raise unreadable(f"the answer's {', '.join(map(repr, strange))[:80]} is not one of the choices")
    labels = {"choice": LETTERS if not known else ascii_uppercase[: len(known)], "numbered_choice": range(len(known))}
    if metric in labels or (metric == "auto" and known):
        texts = {*map(str, labels.get(metric, ())), *(item.casefold().strip() for item in known)}
        if answer.strip() not in texts and answer.casefold().strip() not in texts:
            raise unreadable(
                f"the answer {answer[:80]!r} is not one of the choices"
                if known
                else f"metric '{metric}' needs the column 'choices', a list of texts"
            )
    return known or None
