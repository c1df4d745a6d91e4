"""Records become training examples: token ids and, for each of them, whether it carries loss.

Masks are set by position, from the spans that `ChatFormat.encode` returns, never by searching for text, so that a
caption that looks like a chat header cannot move them. There are three objectives (paper section 1.3):

* ``assistant``    the usual one: every assistant text and the marker that ends it
* ``synthesizer``  everything after the caption's end of turn, questions included, and one end-of-text at the end:
                   the model learns to *write* the tasks, and when to stop
* ``all``          every token after the first: plain text, for pretraining

and one for text without turns, `completion_example`: loss on the completion only (the judge).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from adamllm_ray.data.draws import uniform
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ExampleRefused
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, caption_turns, hinted

Objective = Literal["assistant", "synthesizer", "all"]
Form = Literal["both", "caption", "task"]

IGNORE = -100  # the label of a position without loss: what torch's cross entropy ignores
CONCLUSION = "Therefore, the answer is"

CAPTION_REQUESTS = (
    "Describe the image.",
    "What does this image show?",
    "Write a caption for this picture.",
    "Give a description of what can be seen here.",
    "Tell me about this image.",
    "What is in the picture? Describe it.",
    "Put the content of this image into words.",
    "Please caption this image.",
    "Look at the image and describe it.",
    "Explain what this picture shows.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One training example before image expansion.

    Attributes:
        id: the record's id; orders and draws are keyed on it.
        ids: token ids; an image is ONE placeholder token here.
        labels: same length; the token itself where it carries loss, IGNORE elsewhere (not shifted).
        image: encoded bytes (JPEG, PNG, ...), or None for text.
        kinds: (start, stop, kind) of stretches of ``labels``, for the loss per kind: caption, task, replay:NAME.
    """

    id: str
    ids: list[int]
    labels: list[int]
    image: bytes | None = None
    kinds: list[tuple[int, int, str]] = field(default_factory=list)


def conversation_example(
    chat: ChatFormat,
    turns: Sequence[Turn],
    objective: Objective,
    *,
    id: str = "",
    image: bytes | None = None,
    kinds: Sequence[str] = (),
) -> Example:
    """Tokens and mask of a conversation.

    Args:
        kinds: what each assistant turn is, for the loss per kind; a single one stands for all.

    Raises:
        ExampleRefused: no token would carry loss (empty texts, or a synthesizer conversation without a task).
    """
    encoded = chat.encode(turns)
    ids, spans = list(encoded.ids), encoded.turns
    if objective == "assistant":
        trained = [(span.text, span.stop) for span in spans if span.role == "assistant" and span.end > span.text]
    elif objective == "synthesizer":
        caption = next((span for span in spans if span.role == "assistant"), None)
        has_task = caption is not None and caption.stop < len(ids)
        ids.append(chat.eos_id)
        trained = [(caption.stop, len(ids))] if caption is not None and has_task else []
    else:
        trained = [(1, len(ids))]
    example = _masked(id, ids, trained, image)
    answers = [span for span in spans if span.role == "assistant"]
    named = list(kinds) * len(answers) if len(kinds) == 1 else kinds
    example.kinds.extend((span.text, span.stop, kind) for span, kind in zip(answers, named, strict=False))
    return example


def completion_example(prompt: Sequence[int], completion: Sequence[int], *, id: str = "") -> Example:
    """A plain prompt and its completion, with loss on the completion. Raises ExampleRefused if that is empty."""
    return _masked(id, [*prompt, *completion], [(len(prompt), len(prompt) + len(completion))], None)


def text_example(tokenizer: Any, text: str, *, id: str = "") -> Example:
    """Plain text between begin and end of text, with loss on every token after the first."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [*start, *ids, tokenizer.eos_token_id]
    return _masked(id, ids, [(1, len(ids))], None)


def synthesizer_turns(
    caption: str,
    question: str,
    informative: str,
    precise: str,
    *,
    seed: int,
    epoch: int,
    id: str,
) -> list[Turn]:
    """The paper's seed conversation: caption, then the question under both hints in an order drawn by hash."""
    tasks = [(HINT_PRECISE, precise), (HINT_INFORMATIVE, informative)]
    if uniform(seed, "hints", epoch, id) < 0.5:
        tasks.reverse()
    turns = caption_turns(caption)
    for hint, answer in tasks:
        turns += [Turn("user", hinted(hint, question)), Turn("assistant", answer)]
    return turns


def single_stage_turns(
    row: Mapping[str, Any], form: Form, *, seed: int, epoch: int, caption_first: float = 0.5
) -> list[Turn]:
    """The paper's single-stage example made of a synthesized row (section 3.2): caption, task, or both.

    The order of the two is drawn by hash of (seed, epoch, id), the caption first with the probability
    ``caption_first``; the image stands before whatever comes first.
    """
    turns: list[Turn] = []
    kinds = turn_kinds(row, form, seed=seed, epoch=epoch, caption_first=caption_first)
    for index, kind in enumerate(kinds):
        if kind == "caption":
            question, answer = caption_request(row, seed=seed, epoch=epoch), row["caption"]
        else:
            question, answer = row["instruction"], joined_answer(row["informative"], row["precise"])
        turns += [Turn("user", question, image=index == 0), Turn("assistant", answer)]
    return turns


def turn_kinds(row: Mapping[str, Any], form: Form, *, seed: int, epoch: int, caption_first: float = 0.5) -> list[str]:
    """What the assistant turns of `single_stage_turns` are, in order: caption, task."""
    if form != "both":
        return [form]
    task_first = uniform(seed, "order", epoch, row["id"]) < 1 - caption_first
    return ["task", "caption"] if task_first else ["caption", "task"]


def replayed_turns(texts: Sequence[tuple[str, str]], has_image: bool) -> list[Turn]:
    """Turns of a replay row from its (role, text) pairs; its image goes before the first user text."""
    turns: list[Turn] = []
    placed = not has_image
    for role, text in texts:
        first = role == "user" and not placed
        turns.append(Turn(cast("Literal['system', 'user', 'assistant']", role), text, image=first))
        placed = placed or first
    return turns


def caption_request(row: Mapping[str, Any], *, seed: int, epoch: int) -> str:
    """The source's own request for this caption, or one of ours drawn by hash."""
    own: str | None = row.get("caption_instruction")
    if own and own.strip():
        return own
    return CAPTION_REQUESTS[int(uniform(seed, "caption_request", epoch, row["id"]) * len(CAPTION_REQUESTS))]


def joined_answer(informative: str, precise: str) -> str:
    """The informative answer as reasoning and the precise one as conclusion, unless the first already ends in it."""
    reasoning, conclusion = informative.strip(), precise.strip()
    if not conclusion or _concludes(reasoning, conclusion):
        return reasoning
    if reasoning and reasoning[-1] not in ".!?":
        reasoning += "."
    stop = "" if conclusion[-1] in ".!?" else "."
    return f"{reasoning} {CONCLUSION} {conclusion}{stop}".strip()


def _concludes(reasoning: str, conclusion: str) -> bool:
    """Whether the last words of the reasoning are the conclusion (case and final punctuation aside)."""
    body, tail = (text.casefold().rstrip(" .!?") for text in (reasoning, conclusion))
    if not tail or not body.endswith(tail):
        return False
    before = body[: -len(tail)]
    return not before or not before[-1].isalnum()


def _masked(id: str, ids: list[int], trained: list[tuple[int, int]], image: bytes | None) -> Example:
    labels = [IGNORE] * len(ids)
    for start, stop in trained:
        labels[start:stop] = ids[start:stop]
    labels[:1] = [IGNORE] * len(labels[:1])  # nothing stands before the first token, so it cannot be predicted
    if all(label == IGNORE for label in labels):
        raise ExampleRefused(Verdict.NOTHING_TO_LEARN, f"example {id or '(no id)'} has no token with loss")
    return Example(id, ids, labels, image)
