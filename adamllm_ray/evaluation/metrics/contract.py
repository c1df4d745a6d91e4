"""What a metric is given and what it returns; names that every metric shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Mode = Literal["paper", "strict"]


class Scorable(Protocol):
    """What scoring needs to know about a question."""

    @property
    def id(self) -> str:
        """Its id. ``paper`` seeds the answer that it draws for an unreadable prediction with it."""

    @property
    def answer(self) -> str:
        """The right answer."""

    @property
    def kind(self) -> str:
        """'open' or 'closed'."""

    @property
    def choices(self) -> Sequence[str] | None:
        """The possible answers, if they are listed; for ``names_*`` the vocabulary."""

    @property
    def metric(self) -> str:
        """A key of ``METRICS``."""


@dataclass(frozen=True, slots=True)
class Score:
    """``value`` is 0..1; ``parsed`` says whether an answer could be read at all."""

    value: float
    parsed: bool


Rule = Callable[[str, Scorable], Score]

UNREADABLE = Score(0.0, parsed=False)


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to score, in both modes. ``protocol`` tells in a few words, per mode, what a figure of it means."""

    paper: Rule
    strict: Rule
    protocol: dict[Mode, str]

    def __call__(self, prediction: str, question: Scorable, mode: Mode) -> Score:
        """Score one prediction."""
        return (self.paper if mode == "paper" else self.strict)(prediction, question)
