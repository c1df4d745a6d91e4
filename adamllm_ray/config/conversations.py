"""The section of training conversations: the words around captions, questions and answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from adamllm_ray.config.fields import Section, Share

ANSWER = "{answer}"
JOINING = (  # each says "answer is", which is where the strict metrics look for a conclusion
    "Therefore, the answer is {answer}.",
    "So the answer is {answer}.",
    "Thus, the answer is {answer}.",
    "This means that the answer is {answer}.",
    "It follows that the answer is {answer}.",
    "In short, the answer is {answer}.",
    "Putting this together, the answer is {answer}.",
    "Judging by this, the answer is {answer}.",
)


class ConversationSection(Section):
    """How a caption and a kept task become turns (paper section 3.2). Everything drawn is drawn by hash."""

    answer: Literal["reasoned", "precise", "informative"] = Field(
        default="reasoned",
        description="reasoned: the informative answer, then the precise one as its conclusion, as the paper shows it; "
        "precise or informative: that answer alone.",
    )
    joining: list[str] = Field(
        default=list(JOINING),
        min_length=1,
        description="Sentences that lead from the one answer to the other; one per task. Each has {answer} in it.",
    )
    compat: Literal["official"] | None = Field(
        default=None,
        description="official: the conclusion is left out or only appended where the paper's code finds a word such as "
        "'so ' in the answers, also inside 'also '. Only with answer: reasoned.",
    )
    reversed_share: Share = Field(
        default=0.0,
        description="Share of tasks turned around: the answer is shown, the question is to be written. About 0.32 of "
        "the longer templates of the paper's code are.",
    )
    caption_request: Literal["record", "pool"] = Field(
        default="record",
        description="record: the source's own request for a caption, where it has one. pool: always one of the pool.",
    )
    caption_requests: list[str] = Field(
        default_factory=list, description="The pool. Empty: caption_pool, or else the one that ships with the package."
    )
    caption_pool: str | None = Field(
        default=None, description="A text file with a request per line, local or s3://; # begins a remark."
    )

    @field_validator("joining")
    @classmethod
    def _has_a_place_for_the_answer(cls, joining: list[str]) -> list[str]:
        for sentence in joining:
            if sentence.count(ANSWER) != 1:
                raise ValueError(f"conversations.joining: {sentence!r} must hold {ANSWER} once")
        return joining
