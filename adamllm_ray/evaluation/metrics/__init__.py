"""One prediction -> a score of 0..1, and whether an answer could be read at all.

    score(prediction, question, "strict")

Every metric exists twice. ``paper`` is the scoring that was published with the method, quirks included, so that
figures can be held against its tables. ``strict`` is what the same metric would be if a model were never rewarded for
hedging or by chance: words are whole words, nothing is drawn at random, what cannot be read is wrong, saying a word
twice does not count twice.

::

    text.py      a prediction's conclusion, its words; the normalisation of VQA-v2; names found in a text
    free.py      recall, exact, auto
    labels.py    yes_no, category
    options.py   choice, numbered_choice
    names.py     names_recall, names_f1
    rouge.py     rouge_l
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from adamllm_ray.errors import ConfigError
from adamllm_ray.evaluation.metrics import free, labels, names, options, rouge
from adamllm_ray.evaluation.metrics.contract import Metric, Mode, Scorable, Score

__all__ = ["METRICS", "Metric", "Mode", "Scorable", "Score", "metric_named", "mode_named", "score"]

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "auto": free.AUTO,
        "yes_no": labels.YES_NO,
        "recall": free.RECALL,
        "choice": options.CHOICE,
        "numbered_choice": options.NUMBERED_CHOICE,
        "names_recall": names.NAMES_RECALL,
        "names_f1": names.NAMES_F1,
        "rouge_l": rouge.ROUGE_L,
        "category": labels.CATEGORY,
        "exact": free.EXACT,
    }
)


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ConfigError: there is none; lists those that exist.
    """
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name, METRICS, 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(f"there is no metric {name!r}: {hint}Choose one of {', '.join(METRICS)}")


def mode_named(name: str) -> Mode:
    """The mode of that name. Raises ConfigError when there is none."""
    if name not in ("paper", "strict"):
        raise ConfigError(f"there is no metric mode {name!r}: choose 'strict' or 'paper'")
    return cast(Mode, name)


def score(prediction: str, question: Scorable, mode: Mode) -> Score:
    """Score one prediction with the question's metric.

    Raises:
        ConfigError: the question's metric, or the mode, does not exist.
    """
    return metric_named(question.metric)(prediction, question, mode_named(mode))
