"""Records become training examples: token ids and, for each of them, whether it carries loss.

What the turns say is `wording`'s matter. Masks are set by position, from the spans that `ChatFormat.encode` returns,
never by searching for text, so that a caption that looks like a chat header cannot move them. There are three
objectives (paper section 1.3):

* ``assistant``    the usual one: every assistant text and the marker that ends it
* ``synthesizer``  everything after the caption's end of turn, questions included, and one end-of-text at the end:
                   the model learns to *write* the tasks, and when to stop
* ``all``          every token after the first: plain text, for pretraining

and one for text without turns, `completion_example`: loss on the completion only (the judge).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from adamllm_ray.data.draws import uniform
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ExampleRefused
from adamllm_ray.models.chat import ChatFormat, Turn, end_of_text_id
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, caption_turns, hinted

Objective = Literal["assistant", "synthesizer", "all"]

SYNTHESIZER_KINDS = ("question", "answer")  # stretches whose loss is told apart while a synthesizer is tuned
IGNORE = -100  # the label of a position without loss: what torch's cross entropy ignores


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
        kinds: what each assistant turn is, for the loss per kind; a single one stands for all. The synthesizer
            objective has kinds of its own, SYNTHESIZER_KINDS.

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
        ids.append(end_of_text_id(chat))
        trained = [(caption.stop, len(ids))] if caption is not None and has_task else []
    else:
        trained = [(1, len(ids))]
    example = _masked(id, ids, trained, image, chat.image_token_id)
    if objective == "synthesizer":
        names = {"user": "question", "assistant": "answer"}
        example.kinds.extend((span.start, span.stop, names[span.role]) for span in spans if span.role in names)
        return example
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


def replayed_turns(texts: Sequence[tuple[str, str]], has_image: bool) -> list[Turn]:
    """Turns of a replay row from its (role, text) pairs; its image goes before the first user text."""
    turns: list[Turn] = []
    placed = not has_image
    for role, text in texts:
        first = role == "user" and not placed
        turns.append(Turn(cast("Literal['system', 'user', 'assistant']", role), text, image=first))
        placed = placed or first
    return turns


def _masked(
    id: str, ids: list[int], trained: list[tuple[int, int]], image: bytes | None, image_id: int | None = None
) -> Example:
    labels = [IGNORE] * len(ids)
    for start, stop in trained:
        labels[start:stop] = [IGNORE if token == image_id else token for token in ids[start:stop]]
    labels[:1] = [IGNORE] * len(labels[:1])  # nothing stands before the first token, so it cannot be predicted
    if all(label == IGNORE for label in labels):
        raise ExampleRefused(Verdict.NOTHING_TO_LEARN, f"example {id or '(no id)'} has no token with loss")
    return Example(id, ids, labels, image)
