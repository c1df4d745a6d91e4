"""Stands for ``adamllm_ray.evaluation.metrics`` as a package with two modes, until that is merged. Then delete this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from adamllm_ray.config.evaluation import METRIC_NAMES
from adamllm_ray.evaluation import metrics

Mode = Literal["paper", "strict"]


class Scorable(metrics.Scorable, Protocol):
    """What scoring needs to know about a question."""

    @property
    def id(self) -> str:
        """Seeds what the paper draws at random."""

    @property
    def metric(self) -> str:
        """One of the names that the configuration knows."""


@dataclass(frozen=True, slots=True)
class Score:
    """``value`` in 0..1; ``parsed``: an answer could be read."""

    value: float
    parsed: bool


@dataclass(frozen=True, slots=True)
class Metric:
    """What a figure means, per mode."""

    protocol: dict[Mode, str]


METRICS = {name: Metric({"strict": name, "paper": name}) for name in METRIC_NAMES}


def score(prediction: str, question: Scorable, mode: Mode) -> Score:
    """Today's metric whatever the metric's name; recall where it is asked for; paper mode is recall without parsing."""
    found = metrics.score(prediction, question)
    graded = question.metric in ("recall", "rouge_l", "names_recall", "names_f1")
    value = found.recall if graded and found.recall is not None else float(found.value)
    return Score(value, found.parsed or mode == "paper")
