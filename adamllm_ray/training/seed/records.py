"""The three seed files, record by record: what can be used of them by image, and what not, and why.

An image is known by its file name alone, because the two data sets keep the same files in folders of different names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from adamllm_ray.config.seed import FILES, SeedSection
from adamllm_ray.data import storage
from adamllm_ray.data.jsonfile import Damaged, json_records
from adamllm_ray.data.sources.pair import kind
from adamllm_ray.data.sources.places import source_errors
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError
from adamllm_ray.synthesis.prompts import same_question

IMAGE_TAG = "<image>"
_USERS, _ASSISTANTS = {"user", "human"}, {"assistant", "gpt", "model"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and one answer to it."""

    question: str
    answer: str


@dataclass(slots=True)
class SeedImage:
    """What the three files say about one image. ``task`` is the last task name seen, as in the paper's code."""

    path: str
    caption: str
    precise: list[Asked] = field(default_factory=list)
    informative: list[Asked] = field(default_factory=list)
    task: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that is in no conversation. ``file`` is captions, precise or informative; ``key`` its number there."""

    file: str
    key: str
    image: str
    verdict: Verdict
    detail: str


@dataclass(slots=True)
class Gathered:
    """All records: images by file name, in the order of the captions; the refused ones; how many were read."""

    images: dict[str, SeedImage] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    read: Counter[str] = field(default_factory=Counter)


class UnusableRecord(ValueError):
    """A record that is not what it should be; becomes its verdict."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        self.verdict, self.detail = verdict, detail
        super().__init__(detail)


def gather(section: SeedSection) -> Gathered:
    """Read all three files. Raises SourceError for a file that cannot be read at all."""
    found = Gathered()
    for file in FILES:
        for key, record in _records(section, file):
            found.read[file] += 1
            name = _shown_name(record)
            try:
                _add(found, file, key, record, strict=section.join == "question" and section.compat is None)
            except UnusableRecord as refused:
                found.refused.append(Refused(file, key, name, refused.verdict, refused.detail))
    return found


def _records(section: SeedSection, file: str) -> Iterator[tuple[str, Any]]:
    place = storage.resolve(getattr(section, file), section.s3)
    try:
        with source_errors(place.uri):
            yield from json_records(place)
    except SourceError as error:
        raise SourceError(f"seed.{file}: {error}") from error


def _add(found: Gathered, file: str, key: str, record: Any, *, strict: bool) -> None:
    path = _path(record)
    name = base_name(path)
    known = found.images.get(name)
    if file == "captions":
        if known is not None:
            raise UnusableRecord(Verdict.DUPLICATE, f"{known.path} has a caption already; the first one counts")
        found.images[name] = SeedImage(path, _caption(record))
        return
    asked = _asked(record)
    if known is None:
        raise UnusableRecord(Verdict.SEED_NO_CAPTION, "no usable caption record names this image")
    there: list[Asked] = getattr(known, file)
    if strict and {same_question(one.question) for one in there} & {same_question(one.question) for one in asked}:
        raise UnusableRecord(Verdict.DUPLICATE, "the image was asked this before; the first answer counts")
    there.extend(asked)
    if file == "precise" and isinstance(record.get("task_name"), str):
        known.task = record["task_name"]


def base_name(path: str) -> str:
    """The file name at the end of a path."""
    return path.rstrip("/").rpartition("/")[2]


def _path(record: Any) -> str:
    if isinstance(record, Damaged):
        raise UnusableRecord(Verdict.ROW_UNREADABLE, record.reason)
    if not isinstance(record, dict):
        raise UnusableRecord(Verdict.ROW_UNREADABLE, f"expected an object, found {kind(record)}")
    path = record.get("image")
    if not isinstance(path, str) or not base_name(path):
        raise UnusableRecord(Verdict.ROW_UNREADABLE, "no image: expected 'image': \"file.jpg\"")
    return path


def _shown_name(record: Any) -> str:
    path = record.get("image") if isinstance(record, dict) else None
    return path if isinstance(path, str) else ""


def _caption(record: dict[str, Any]) -> str:
    """The field ``caption``, else the first answer of the conversation."""
    caption = record.get("caption")
    if caption is None:
        caption = next((text for role, text in _messages(record, "'caption' or 'conversations'") if not role), "")
    if not isinstance(caption, str):
        raise UnusableRecord(Verdict.ROW_UNREADABLE, f"caption is not a text but {kind(caption)}")
    if not caption.strip():
        raise UnusableRecord(Verdict.CAPTION_EMPTY, "the caption is empty")
    return caption


def _asked(record: dict[str, Any]) -> list[Asked]:
    """Questions and answers in turn, the image tag taken off."""
    messages = _messages(record, "'conversations'")
    if not messages:
        raise UnusableRecord(Verdict.ROW_UNREADABLE, "the conversation is empty")
    for number, (user, _) in enumerate(messages):
        if user == bool(number % 2):
            what = "the question before it has no answer" if user else "an answer without a question"
            verdict = Verdict.SEED_UNANSWERED if user else Verdict.ROW_UNREADABLE
            raise UnusableRecord(verdict, f"message {number + 1} of {len(messages)}: {what}")
    if len(messages) % 2 or not all(text.strip() for user, text in messages if not user):
        raise UnusableRecord(Verdict.SEED_UNANSWERED, "the conversation has a question without an answer")
    texts = [text for _, text in messages]
    return [Asked(question_of(texts[at]), texts[at + 1].strip()) for at in range(0, len(texts), 2)]


def question_of(text: str) -> str:
    """A question without its image tag, which may stand at its start or end. Raises UnusableRecord."""
    bare = text.strip()
    if bare.startswith(IMAGE_TAG):
        bare = bare.removeprefix(IMAGE_TAG).strip()
    elif bare.endswith(IMAGE_TAG):
        bare = bare.removesuffix(IMAGE_TAG).strip()
    if IMAGE_TAG in bare:
        raise UnusableRecord(Verdict.ROW_UNREADABLE, f"{IMAGE_TAG} in the middle of a question, or twice")
    if not bare:
        raise UnusableRecord(Verdict.ROW_UNREADABLE, "a question is empty")
    return bare


def _messages(record: dict[str, Any], expected: str) -> list[tuple[bool, str]]:
    """(whether the user speaks, text) of each message."""
    messages = record.get("conversations", record.get("messages"))
    if not isinstance(messages, list):
        raise UnusableRecord(Verdict.ROW_UNREADABLE, f"expected {expected}; conversations are {kind(messages)}")
    return [_message(message) for message in messages]


def _message(message: Any) -> tuple[bool, str]:
    if not isinstance(message, dict):
        raise UnusableRecord(Verdict.ROW_UNREADABLE, f"a message is not an object but {kind(message)}: nested wrongly")
    role, text = message.get("from", message.get("role")), message.get("value", message.get("content"))
    if not isinstance(text, str) or role not in _USERS | _ASSISTANTS:
        raise UnusableRecord(
            Verdict.ROW_UNREADABLE, "a message needs a speaker ('from': human or gpt) and a text ('value')"
        )
    return role in _USERS, text
