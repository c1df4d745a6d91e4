"""The words of a training conversation: how captions are asked for, and how a task's two answers become one.

    turns = single_stage_turns(row, "both", section, seed=0, epoch=0)

The paper shows instruction -> informative answer as reasoning -> precise answer as conclusion, and that is the default.
Its code does something else for half of the tasks; what of it changes the data is here behind switches. Wordings are
drawn by hash of (seed, id), the order of turns and the request for a caption by (seed, epoch, id).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adamllm_ray.data.draws import uniform
from adamllm_ray.models.chat import Turn

if TYPE_CHECKING:
    from adamllm_ray.config import ConversationSection, S3Section

Form = Literal["both", "caption", "task"]
Branch = Literal["informative", "appended", "reasoned"]

CONCLUSION = "Therefore, the answer is {answer}."
# What the paper's code takes for a conclusion, as substrings: "also " and "torso " hold the second one, and
# "therefore," with a comma is not the fourth.
INDICATORS = ("could be ", "so ", "thus ", "therefore ", "final ", "answer ", "result ")

# (user, assistant) of a task turned around.
REVERSED = (
    ("Here is an answer about this image: {reasoned}\nWhich question was asked?", "{question}"),
    ("{reasoned}\nWrite the question that this answers.", "{question}"),
    ('Ask about this image so that the answer is "{precise}", and explain it.', "{question}\n{informative}"),
    ('Make up a question with the answer "{precise}", then reason about it.', "{question}\n{informative}"),
    ("Somebody said: {informative}\nWhat may the question have been, and its short answer?", "{question}\n{precise}"),
    ("Turn this remark into a question and a short answer: {informative}", "{question}\n{precise}"),
)


def single_stage_turns(
    row: Mapping[str, Any],
    form: Form,
    section: ConversationSection,
    *,
    seed: int,
    epoch: int,
    caption_first: float = 0.5,
) -> list[Turn]:
    """The paper's single-stage example made of a synthesized row (section 3.2): caption, tasks, or both.

    The order of the two is drawn by hash of (seed, epoch, id), the caption first with the probability
    ``caption_first``; the image stands before whatever comes first.
    """
    turns: list[Turn] = []
    told = iter(task_texts(row, section, seed=seed))
    kinds = turn_kinds(row, form, seed=seed, epoch=epoch, caption_first=caption_first)
    for index, kind in enumerate(kinds):
        if kind == "caption":
            question, answer = caption_request(row, section, seed=seed, epoch=epoch), row["caption"]
        else:
            question, answer = next(told)
        turns += [Turn("user", question, image=index == 0), Turn("assistant", answer)]
    return turns


def turn_kinds(row: Mapping[str, Any], form: Form, *, seed: int, epoch: int, caption_first: float = 0.5) -> list[str]:
    """What the assistant turns of `single_stage_turns` are, in order: caption, task."""
    tasks = ["task"] * len(list(_tasks(row)))
    if form != "both":
        return tasks if form == "task" else [form]
    task_first = uniform(seed, "order", epoch, row["id"]) < 1 - caption_first
    return [*tasks, "caption"] if task_first else ["caption", *tasks]


def task_texts(row: Mapping[str, Any], section: ConversationSection, *, seed: int) -> list[tuple[str, str]]:
    """(user text, assistant text) of each of the row's tasks."""
    return [task_text(task, section, seed=seed, id=row["id"], number=number) for number, task in enumerate(_tasks(row))]


def _tasks(row: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    """The row's task, and more of the same image where synthesis kept some."""
    yield {name: row[name] or "" for name in ("instruction", "informative", "precise")}
    yield from row.get("further") or ()


def task_text(
    task: Mapping[str, str], section: ConversationSection, *, seed: int, id: str, number: int = 0
) -> tuple[str, str]:
    """(user text, assistant text) of one task."""
    phrase = section.joining[int(uniform(seed, "joining", id, number) * len(section.joining))]
    answer = _answer(task["informative"], task["precise"], section, phrase)
    if uniform(seed, "reversed", id, number) >= section.reversed_share:
        return task["instruction"], answer
    user, assistant = REVERSED[int(uniform(seed, "reversed_shape", id, number) * len(REVERSED))]
    words = {
        "question": task["instruction"],
        "reasoned": answer,
        "informative": task["informative"].strip(),
        "precise": task["precise"].strip(),
    }
    return _filled(user, words), _filled(assistant, words)


def _answer(informative: str, precise: str, section: ConversationSection, phrase: str) -> str:
    if section.answer != "reasoned":
        return (precise if section.answer == "precise" else informative).strip()
    if section.compat is None:
        return joined_answer(informative, precise, phrase)
    branch = official_branch(informative, precise)
    if branch == "informative":
        return informative
    return (
        f"{informative} {precise}" if branch == "appended" else _concluded(informative.strip(), precise.strip(), phrase)
    )


def official_branch(informative: str, precise: str) -> Branch:
    """What the paper's code would do with two answers, by its indicator words in the last sentence of the one and

    anywhere in the other. Sentences end at a full stop and a blank.
    """
    last = informative.lower().split(". ")[-1]
    if any(word in last for word in INDICATORS):
        return "informative"
    return "appended" if any(word in precise for word in INDICATORS) else "reasoned"


def joined_answer(informative: str, precise: str, phrase: str = CONCLUSION) -> str:
    """The informative answer as reasoning and the precise one as conclusion, unless the first already ends in it."""
    reasoning, conclusion = informative.strip(), precise.strip()
    if not conclusion or _concludes(reasoning, conclusion):
        return reasoning
    return _concluded(reasoning, conclusion, phrase)


def _concluded(reasoning: str, conclusion: str, phrase: str) -> str:
    if reasoning and reasoning[-1] not in ".!?":
        reasoning += "."
    if conclusion and conclusion[-1] in ".!?" and phrase.endswith("{answer}."):
        phrase = phrase.removesuffix(".")
    return f"{reasoning} {_filled(phrase, {'answer': conclusion})}".strip()


def _filled(template: str, words: Mapping[str, str]) -> str:
    """The template with its words, once: braces inside them stay braces."""
    parts: list[str] = []
    rest = template
    while rest:
        before, brace, rest = rest.partition("{")
        name, closed, after = rest.partition("}")
        known = bool(brace and closed) and name in words
        parts += [before, words[name] if known else brace]
        rest = after if known else rest
    return "".join(parts)


def _concludes(reasoning: str, conclusion: str) -> bool:
    """Whether the last words of the reasoning are the conclusion (case and final punctuation aside)."""
    body, tail = (text.casefold().rstrip(" .!?") for text in (reasoning, conclusion))
    if not tail or not body.endswith(tail):
        return False
    before = body[: -len(tail)]
    return not before or not before[-1].isalnum()


def caption_request(row: Mapping[str, Any], section: ConversationSection, *, seed: int, epoch: int) -> str:
    """The source's own request for this caption, or one of the pool drawn by hash."""
    own: str | None = row.get("caption_instruction")
    if section.caption_request == "record" and own and own.strip():
        return own
    pool = section.caption_requests or shipped_requests()
    return pool[int(uniform(seed, "caption_request", epoch, row["id"]) * len(pool))]


@lru_cache(maxsize=1)
def shipped_requests() -> tuple[str, ...]:
    """The pool that ships with the package."""
    return _lines(Path(__file__).with_name("caption_requests.txt").read_text("utf-8"))


def with_pool(section: ConversationSection, s3: S3Section | None = None) -> ConversationSection:
    """The section with the requests of its pool file in it, so that workers need no file.

    Raises:
        ConfigError: the file cannot be read, or has no line.
    """
    from adamllm_ray.data import storage
    from adamllm_ray.errors import ConfigError

    if section.caption_requests or not section.caption_pool:
        return section
    place = storage.resolve(section.caption_pool, s3)
    with storage.storage_errors("read the caption pool", place.uri):
        found = storage.read_small(place)
    requests = _lines((found or b"").decode("utf-8", "replace"))
    if not requests:
        raise ConfigError(f"conversations.caption_pool: {place.uri} has no line with a request for a caption")
    return section.model_copy(update={"caption_requests": list(requests)})


def _lines(text: str) -> tuple[str, ...]:
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))
