"""The field layout of the released benchmark sets, and how a row of it becomes a question.

All twelve have the columns ``image``, ``input`` (the prompt, ready to be asked) and ``label``; the medical ones
``answer_type`` (OPEN or CLOSED), PMC-VQA the choices ``A`` to ``D``. What a benchmark adds to that is one `Benchmark`,
in a file of its own beside this one. Numbers of rows are those that the paper prints (arXiv 2411.19930, tables 13 and
14); what a folder really holds is counted and reported.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from adamllm_ray.errors import SourceError
from adamllm_ray.evaluation.metrics.text import vocabulary as known_names
from adamllm_ray.evaluation.tasks import Kind, Question
from adamllm_ray.evaluation.tasks.files import TaskSource
from adamllm_ray.evaluation.tasks.rows import (
    Row,
    RowError,
    image,
    question_or_verdict,
    row_id,
    several,
    text,
    unreadable,
)

HUB = "https://huggingface.co/datasets/AdaptLLM"
BIOMEDICINE = f"{HUB}/biomed-VQA-benchmark"
FOOD = f"{HUB}/food-VQA-benchmark"
REMOTE_SENSING = f"{HUB}/remote-sensing-VQA-benchmark"
REQUIRED = ("image", "input", "label")
LETTERS = "ABCD"
MOST_NAMES = 5000  # a vocabulary that is longer is not one

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """What is right about a row, and how that is scored. ``column`` is empty where a benchmark has only one."""

    answer: str
    metric: str
    kind: Kind = "open"
    column: str = ""
    choices: Names | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A published benchmark.

    Attributes:
        name: in the configuration.
        title: in tables.
        release: where the rows in this layout come from; ``folders`` are its folder's names there.
        rows: column of the paper's tables -> rows that the paper prints for it.
        link: the benchmark's own home, and ``licence`` what its authors say there.
        read: a row's key, given the vocabulary.
        names: the vocabulary of all rows, where scoring needs one.
        max_new_tokens: of an answer, by the paper's protocol.
    """

    name: str
    title: str
    release: str
    folders: tuple[str, ...]
    rows: Mapping[str, int]
    link: str
    licence: str
    read: Callable[[Row, Names], Key]
    names: Callable[[TaskSource], Names] = lambda _: ()
    max_new_tokens: int = 1024
    split: str = "test"

    @property
    def beside(self) -> str:
        """Name of the release's file that the vocabulary is in, if there is one."""
        return self.names.file if isinstance(self.names, Released) else ""

    def label(self, column: str) -> str:
        """What a column is called in tables."""
        return f"{self.title} {column}".strip()

    def questions(self, source: TaskSource) -> Iterator[Question]:
        """Every row, in order; ids end in its number, which seeds what the paper's scoring draws at random.

        Raises:
            SourceError: the source is not in this layout.
        """
        columns = source.columns()
        missing = [name for name in REQUIRED if columns is not None and name not in columns]
        if missing:
            raise SourceError(
                f"{source.field}: {source.path} lacks the column(s) {', '.join(missing)} of the released "
                f"{self.title} ({self.release}); for a table of your own give the task a name of your own"
            )
        folder, names = source.images(), self.names(source)

        def make(row: Row, name: str, number: int) -> Question:
            asked, key = text(row, "input"), self.read(row, names)
            picture = image(row.get("image"), folder)
            return Question(
                id=f"{row_id(name, picture, asked, number)[:12]}-{number}",
                image=picture,
                question=asked,
                answer=key.answer,
                type=self.label(key.column),
                kind=key.kind,
                choices=key.choices,
                metric=key.metric,
            )

        for number, row in enumerate(source.rows()):
            yield question_or_verdict(row, number, self.title, partial(make, number=number))


def open_or_closed(row: Row, _: Names) -> Key:
    """By ``answer_type``: recall of the label's words, or yes or no."""
    answer, kind = text(row, "label"), str(row.get("answer_type")).strip().upper()
    if kind == "OPEN":
        return Key(answer, "recall", "open", "open")
    if kind == "CLOSED":
        return Key(answer, "yes_no", "closed", "closed")
    raise unreadable(f"'answer_type' is {kind[:40]!r}, expected OPEN or CLOSED")


def lettered(row: Row, _: Names) -> Key:
    """One of the choices in the columns A to D; the label is its letter, or its text."""
    choices = tuple(re.sub(rf"^\s*{letter}\s*:\s*", "", text(row, letter)).strip() for letter in LETTERS)
    label = text(row, "label").strip()
    if label.upper() in (*LETTERS,):  # first: where choice A reads "B", the label "A" is choice A
        return Key(label.upper(), "choice", choices=choices)
    place = known_names(choices, loose=False).position(label)
    if place is not None:
        return Key(LETTERS[place], "choice", choices=choices)
    raise unreadable(f"the label {label[:80]!r} is neither a letter from A to D nor one of the choices")


def numbered(row: Row, names: Names) -> Key:
    """A class, as its number or its name."""
    return Key(_name(text(row, "label"), names), "numbered_choice", choices=names)


def listed(metric: str, without: Names = ()) -> Callable[[Row, Names], Key]:
    """A list of names (or of their numbers) that are looked for in the answer; those in ``without`` do not count."""

    def read(row: Row, names: Names) -> Key:
        whole = row.get("label")
        named = isinstance(whole, str) and known_names(names, loose=True).position(whole) is not None
        items = [str(whole)] if named else several(row, "label")  # a name may hold a comma
        label = [name for item in items if (name := _name(item, names)) not in without]
        answer = json.dumps(list(dict.fromkeys(label)), ensure_ascii=False)  # a name may hold a comma
        return Key(answer, metric, choices=tuple(name for name in names if name not in without))

    return read


def category(row: Row, names: Names) -> Key:
    """One of the categories that occur as labels."""
    return Key(text(row, "label").strip(), "category", choices=names)


def short_answer(row: Row, _: Names) -> Key:
    """A word, a number, or yes or no, as the question asks for."""
    return Key(text(row, "label").strip(), "category")


def sentences(row: Row, _: Names) -> Key:
    """A text of which the longest common subsequence of words counts."""
    return Key(text(row, "label"), "rouge_l")


def labels(source: TaskSource, *, lists: bool = False) -> Names:
    """The vocabulary that the labels of all rows make up; with ``lists`` a label is a list of names."""
    found: set[str] = set()
    for row in source.rows(("label",)):
        with suppress(RowError):  # it becomes a verdict when its turn comes
            found |= set(several(row, "label")) if lists else {text(row, "label").strip()}
        if len(found) > MOST_NAMES:
            raise SourceError(f"{source.field}: {source.path} has more than {MOST_NAMES} different labels")
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class Released:
    """The vocabulary in a file of the release: a list of names, or a table of names and their numbers.

    Without the file, what the labels make up (with ``lists`` a label is several); that is refused where they are
    numbers, which say nothing.
    """

    file: str
    lists: bool = False

    def __call__(self, source: TaskSource) -> Names:
        """Raises SourceError where there is none."""
        content = source.beside(self.file)
        if content is not None:
            return vocabulary(content.decode("utf-8", "replace"), f"{source.field}: {self.file}")
        found = labels(source, lists=self.lists)
        if found and all(name.isdigit() for name in found):
            raise SourceError(
                f"{source.field}: the labels of {source.path} are numbers, and {self.file} of the release, which says "
                "what they mean, is not in that folder or above it: put it there"
            )
        return found


def vocabulary(content: str, where: str) -> Names:
    """Names in the order of their numbers, from JSON or from the first list in Python text (which is not run).

    Raises:
        SourceError: there is none.
    """
    tree = _table(content)
    if isinstance(tree, dict):
        pairs = {str(k): str(v) for k, v in tree.items()}
        if pairs and all(value.isdigit() for value in pairs.values()):
            pairs = {value: key for key, value in pairs.items()}
        if pairs and all(key.isdigit() for key in pairs) and sorted(map(int, pairs)) == list(range(len(pairs))):
            return tuple(pairs[str(number)] for number in range(len(pairs)))
    elif isinstance(tree, list) and tree and all(isinstance(item, str) for item in tree):
        return tuple(item.strip() for item in tree)
    raise SourceError(f"{where} holds neither a list of names nor a table of names and their numbers from 0")


def _table(content: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    try:
        nodes = ast.walk(ast.parse(content))
        return next((ast.literal_eval(node) for node in nodes if isinstance(node, ast.List | ast.Dict)), None)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _name(label: str, names: Names) -> str:
    """The name that a number stands for, or that is the label but for case, hyphens and underscores.

    Raises RowError for another label: an answer that is not looked for could only be scored wrong.
    """
    label = label.strip()
    place = int(label) if label.isdecimal() and len(label) < 10 else known_names(names, loose=True).position(label)
    if place is None:
        raise unreadable(f"the label {label[:80]!r} is none of the {len(names)} names")
    if place >= len(names):
        raise unreadable(f"the label {label[:20]} is the number of no name")
    return names[place]
