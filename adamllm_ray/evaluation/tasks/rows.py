"""From a row of a file to the parts of a question, or to the verdict that says why there is none."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from typing import Any

from adamllm_ray.data.record import record_id
from adamllm_ray.data.sources.folder import ImageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused
from adamllm_ray.evaluation.tasks import Question
from adamllm_ray.evaluation.tasks.files import PROBLEM

Row = dict[str, Any]


class RowError(Exception):
    """A row cannot be used; carries the verdict. Does not leave this room."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        self.verdict = verdict
        super().__init__(detail)


def unreadable(detail: str) -> RowError:
    """The row is malformed."""
    return RowError(Verdict.ROW_UNREADABLE, detail)


def question_or_verdict(row: Row, number: int, type_: str, make: Callable[[Row, str], Question]) -> Question:
    """``make(row, name)``, or, when that raises RowError, a question that is not asked, of this type.

    ``name`` is the row's own id if it has one, else empty.
    """
    own = row.get("id")
    name = "" if own is None else str(own)
    try:
        if PROBLEM in row:
            raise unreadable(row[PROBLEM])
        return make(row, name)
    except RowError as error:
        key = name or f"row {number}"
        return Question(key, None, "", "", type_, "open", verdict=error.verdict, verdict_detail=str(error)[:500])


def row_id(name: str, image: bytes, question: str, number: int) -> str:
    """The row's own id, or one made of its content and position."""
    return name or record_id(image, question, f"row {number}")


def text(row: Row, name: str) -> str:
    """A text or a number as text. Raises RowError for anything else, and for nothing but space."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise unreadable(f"'{name}' is {'missing' if value is None else 'not a text'}")
    return str(value)


def image(value: Any, folder: ImageFolder) -> bytes:
    """Encoded bytes, from bytes, a ``{bytes, path}`` struct, or a path inside the folder. Raises RowError."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise RowError(Verdict.IMAGE_MISSING, "no image")
    try:
        return folder.read(value)
    except ImageRefused as refused:
        raise RowError(refused.verdict, refused.detail) from refused


def several(row: Row, name: str) -> list[str]:
    """A list, or a list spelled out in a text ("[1, 24]", "rice, egg"), as texts. Raises RowError if there is none."""
    value = row.get(name)
    if isinstance(value, str) and value.strip().startswith("["):
        value = _literal(value)
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str | int) for item in value):
        raise unreadable(f"'{name}' is {'missing' if value is None else 'no list of names'}")
    return [str(item).strip() for item in value if str(item).strip()]


def _literal(value: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None
