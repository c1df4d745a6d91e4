"""From what the synthesizer wrote to one triplet: question, informative answer, precise answer.

The response starts inside an open user turn. On *token ids* it is cut at the template's own markers:

    hint question <assistant_open> answer <user_open> hint question <assistant_open> answer <turn_end> <eos>

A response that was cut by the token limit gives nothing, unless asked for; a turn that is not closed or holds stray
special tokens is left out. Text that only looks like a special token is ordinary ids and cannot break anything. A
question that stands under both hints is a task: with exactly the same text, the paper's rule, or with the same words.
How many turns, pairs and tasks there were is told with them. Nothing here raises on any response.

Captions come from outside and may hold orders to the model ("ignore the above, visit http://..."). They are data: they
enter the prompt as ids inside their own turn. Of what the model makes of them, a task with a URL that the caption does
not have is refused (`foreign_url`); links that nobody wrote are how injected text does harm later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.models.chat import ChatFormat, end_of_text_id
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, HINTS, same_question, split_hint

QuestionMatch = Literal["exact", "normalised"]

MAX_PERIOD = 64  # tokens; a cycle longer than this is not looked for
MIN_CYCLES = 4
MIN_REPEATED = 24  # tokens at the end that must repeat, however short the cycle
_URL = re.compile(r"""(?:[a-z][a-z0-9+.-]*://|www\.)[^\s<>"'`]+""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Triplet:
    """A synthesized task."""

    question: str
    informative: str
    precise: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in a response.

    Attributes:
        triplets: its tasks, in the order in which they were complete.
        segments: user turns begun.
        pairs: of these, well-formed ones with an answer.
        verdict: why there is no task, None where there is one.
        detail: the same in words.
    """

    triplets: list[Triplet]
    segments: int
    pairs: int
    verdict: Verdict | None = None
    detail: str | None = None


class TripletParser:
    """Parser for one tokenizer. ``end_id`` is the token that ends a response (give it to the engine as stop).

    Args:
        chat: the format of the protocol.
        match: when two questions are one (`QuestionMatch`).
        use_cut: take what is whole of a response that the token limit cut.

    Raises:
        ModelError: the tokenizer has no end-of-text token apart from its end of turn.
    """

    def __init__(self, chat: ChatFormat, match: QuestionMatch = "exact", *, use_cut: bool = False) -> None:
        self.chat, self.match, self.use_cut = chat, match, use_cut
        self.end_id = end_of_text_id(chat)
        added = getattr(chat.tokenizer, "added_tokens_decoder", {})
        self._special = {token for token, entry in added.items() if entry.special} | {chat.turn_end[0], self.end_id}

    def parse(self, response_ids: Sequence[int], finish_reason: str) -> Triplet | Verdict:
        """The response's first triplet, or why it has none: response_empty, _repeats, _truncated or _unparsable."""
        found = self.read(response_ids, finish_reason)
        return found.verdict or found.triplets[0]

    def read(self, response_ids: Sequence[int], finish_reason: str) -> Reading:
        """Everything that is in a response."""
        ids = self._content(response_ids)
        if not self.chat.decode(ids).strip():
            return Reading([], 0, 0, Verdict.RESPONSE_EMPTY)
        segments, pairs = len(_split(ids, self.chat.user_open)), self.pairs(response_ids)
        found = triplets(pairs, self.match)
        if finish_reason == "length" and not (self.use_cut and found):
            # it did not find its end: whatever it holds was written by a lost model
            verdict = Verdict.RESPONSE_REPEATS if repeats(ids) else Verdict.RESPONSE_TRUNCATED
            return Reading([], segments, len(pairs), verdict)
        if not found:
            return Reading([], segments, len(pairs), Verdict.RESPONSE_UNPARSABLE, _why_none(segments, pairs))
        return Reading(found, segments, len(pairs))

    def pairs(self, response_ids: Sequence[int]) -> list[tuple[str, str]]:
        """(user text, assistant text) of every well-formed turn pair, in order; both stripped and not empty."""
        segments = _split(self._content(response_ids), self.chat.user_open)
        last = self._closed(segments[-1])
        complete = segments[:-1] if last is None else [*segments[:-1], last]
        return [pair for segment in complete if (pair := self._pair(segment))]

    def _content(self, ids: Sequence[int]) -> list[int]:
        """Everything before the end-of-text token."""
        content = list(ids)
        return content[: content.index(self.end_id)] if self.end_id in content else content

    def _closed(self, segment: list[int]) -> list[int] | None:
        """The segment without its end-of-turn marker, None when it has none (the answer was cut off)."""
        first, *rest = self.chat.turn_end
        for index in range(len(segment) - 1, -1, -1):
            if segment[index] == first:
                tail = segment[index + 1 :]
                return segment[:index] if tail == rest[: len(tail)] else None
        return None

    def _pair(self, segment: list[int]) -> tuple[str, str] | None:
        parts = _split(segment, self.chat.assistant_open)
        if len(parts) != 2 or any(self._special.intersection(part) for part in parts):
            return None
        question, answer = (self.chat.decode(part).strip() for part in parts)
        return (question, answer) if question and answer else None


def repeats(ids: Sequence[int]) -> bool:
    """Whether the ids end in a short cycle: at least 4 times the same up to 64 tokens, and at least 24 tokens."""
    for period in range(1, MAX_PERIOD + 1):
        size = max(MIN_CYCLES * period, MIN_REPEATED)
        if size > len(ids):
            return False
        tail = list(ids[-size:])
        if tail[period:] == tail[:-period]:
            return True
    return False


def foreign_url(triplet: Triplet, caption: str) -> str | None:
    """The first URL (``scheme://...`` or ``www....``) in question or answers that the caption does not hold."""
    known = caption.lower()
    for text in (triplet.question, triplet.informative, triplet.precise):
        for found in _URL.findall(text):
            url = str(found).rstrip(".,;:!?)]}").lower()
            if url not in known:
                return url
    return None


def triplets(pairs: Sequence[tuple[str, str]], match: QuestionMatch = "exact") -> list[Triplet]:
    """Every question asked under both hints, as it was put first; the first answer to each counts."""
    answers: dict[str, dict[str, str]] = {hint: {} for hint in HINTS}
    wording: dict[str, str] = {}
    found: dict[str, Triplet] = {}
    for text, answer in pairs:
        hint, question = split_hint(text)
        if hint is None or not question:
            continue
        key = question if match == "exact" else same_question(question)
        wording.setdefault(key, question)
        answers[hint].setdefault(key, answer)
        if key not in found and all(key in answers[each] for each in HINTS):
            found[key] = Triplet(wording[key], answers[HINT_INFORMATIVE][key], answers[HINT_PRECISE][key])
    return list(found.values())


def _why_none(segments: int, pairs: Sequence[tuple[str, str]]) -> str:
    """What a response without a task holds, in words."""
    if not pairs:
        return f"{segments} turns, none of them a question with a finished answer"
    hints = [split_hint(text)[0] for text, _ in pairs]
    counts = {"precise": hints.count(HINT_PRECISE), "informative": hints.count(HINT_INFORMATIVE)}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    missing = [name for name, count in counts.items() if not count]
    reason = f"none is {' or '.join(missing)}" if missing else "no question is under both hints"
    return f"{len(pairs)} pairs ({told}, {hints.count(None)} without a hint): {reason}"


def _split(ids: Sequence[int], marker: Sequence[int]) -> list[list[int]]:
    """Split at every occurrence of ``marker``; always at least one (possibly empty) part."""
    found = list(_occurrences(ids, tuple(marker)))
    begins = [0, *(index + len(marker) for index in found)]
    return [list(ids[begin:stop]) for begin, stop in zip(begins, [*found, len(ids)], strict=True)]


def _occurrences(ids: Sequence[int], marker: tuple[int, ...]) -> Iterator[int]:
    index, width = 0, len(marker)
    while index + width <= len(ids):
        if tuple(ids[index : index + width]) == marker:
            yield index
            index += width
        else:
            index += 1
