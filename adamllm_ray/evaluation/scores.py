"""Scored predictions -> the numbers of the report: per model and column, differences, baselines, forgetting.

The layout, which the report and the CLI read (``extra["scores"]`` of the evaluate manifest)::

    types        [name, ...] in alphabetical order: the columns
    unusable     questions that could not be asked of any model; they are in no n
    models       {"base" | "adapted": {"types": {name: CELL}, "overall": CELL, "average": CELL}}
    difference   {"types": {name: DIFF}, "overall": DIFF, "average": DIFF}     adapted - base, same questions
    baselines    {name: {"fitted_on", "types": {name: share}, "overall": share, "average": share}}

    paper        the same keys under the paper's metrics; above them are the strict ones
    general      the same keys, "paper" included, for the questions of the forgetting check; None without any
    tasks        {name: {"title", "protocol", "split", "general", "rows", "n", "unusable", "verdicts",
                 "types": {column: {metric: {"strict": words, "paper": words}}},
                 "models": {"base" | "adapted": {"strict": CELL, "paper": CELL}}, ...}}

CELL is {n, questions_digest, accuracy, lo, hi, unparsable}, DIFF is {value, lo, hi, p}; all shares in 0..1. "accuracy"
is the mean score, which is graded for recall, F1 and ROUGE-L. Figures of two runs may stand side by side where their
cells have the same "questions_digest": they are about the same questions, by id. "overall" counts every question once;
"average" is the unweighted mean over columns, as in the paper (biomedicine: seven, open and closed counted separately).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adamllm_ray.evaluation.baselines import MODES, Baseline
from adamllm_ray.evaluation.intervals import (
    Difference,
    Interval,
    average_difference,
    average_interval,
    mean_interval,
    paired_difference,
)
from adamllm_ray.evaluation.metrics import METRICS, Mode

MODELS = ("base", "adapted")
Row = Mapping[str, Any]
Groups = Mapping[str, list[Row]]


def summarise(
    rows: Sequence[Row],
    baselines: Iterable[Baseline] = (),
    *,
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The scores of a predictions table.

    Args:
        rows: one per (model, question) with question_id, model, task, type, verdict, and per mode score_MODE and
            parsed_MODE (None when the question itself could not be used, which leaves it out for every model).
        baselines: fitted on the same questions of the domain.
        tasks: what to say beside each task's scores (`tasks.describe`); whether it is a general one is read here.
        samples: bootstrap resamples.
        seed: of the bootstrap.
    """
    about = tasks or {}
    unusable = {row["question_id"] for row in rows if row["score_strict"] is None}
    usable = [row for row in sorted(rows, key=lambda row: row["question_id"]) if row["question_id"] not in unusable]
    beside = {name for name, task in about.items() if task["general"]}
    domain = _Part([row for row in usable if row.get("task") not in beside], list(baselines), samples, seed)
    general = _Part([row for row in usable if row.get("task") in beside], [], samples, seed)
    of_tasks = {name: dict(task) | _task(name, rows, usable, samples, seed) for name, task in about.items()}
    lost = {name: task["unusable"] for name, task in of_tasks.items()}
    found = {"unusable": len(unusable) - sum(lost[name] for name in beside), "bootstrap_samples": samples}
    apart = {"unusable": sum(lost[name] for name in beside), "bootstrap_samples": samples}
    return (
        domain.scores("strict")
        | found
        | {"paper": domain.scores("paper") | found, "tasks": of_tasks}
        | {"general": general.scores("strict") | apart | {"paper": general.scores("paper") | apart} if beside else None}
    )


class _Part:
    """Rows that are averaged together: those of the domain, or those of the forgetting check."""

    def __init__(self, rows: Sequence[Row], baselines: Sequence[Baseline], samples: int, seed: int) -> None:
        self._groups: dict[str, dict[str, list[Row]]] = {name: defaultdict(list) for name in MODELS}
        for row in rows:
            self._groups[row["model"]][row["type"]].append(row)
        self._types = sorted(self._groups["base"])
        self._baselines, self._samples, self._seed = baselines, samples, seed

    def scores(self, mode: Mode) -> dict[str, Any]:
        """types, models, difference and baselines under one kind of metric."""
        base, adapted = (self._groups[name] for name in MODELS)
        return {
            "types": self._types,
            "models": {name: self._model(groups, mode) for name, groups in self._groups.items()},
            "difference": self._difference(base, adapted, mode),
            "baselines": {one.name: _baseline(one, base, self._types, mode) for one in self._baselines},
        }

    def _model(self, groups: Groups, mode: Mode) -> dict[str, Any]:
        if not groups:
            return {"types": {}, "overall": None, "average": None}
        values = [_values(groups[name], mode) for name in sorted(groups)]
        average = average_interval(values, self._samples, self._seed)
        overall = cell([row for name in sorted(groups) for row in groups[name]], mode, self._samples, self._seed)
        return {
            "types": {name: cell(groups[name], mode, self._samples, self._seed) for name in sorted(groups)},
            "overall": overall,
            "average": overall | _accuracy(average),
        }

    def _difference(self, base: Groups, adapted: Groups, mode: Mode) -> dict[str, Any]:
        """Paired by question: both lists of a column are sorted by id."""
        if not self._types:
            return {"types": {}, "overall": None, "average": None}
        pairs = [_paired(base[name], adapted[name], mode) for name in self._types]
        average = average_difference(pairs, self._samples, self._seed)
        pooled = tuple([value for pair in pairs for value in pair[side]] for side in (0, 1))
        return {
            "types": {name: self._gain(*pair) for name, pair in zip(self._types, pairs, strict=True)},
            "overall": self._gain(*pooled),
            "average": _told(average),
        }

    def _gain(self, before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
        return _told(paired_difference(before, after, self._samples, self._seed))


def cell(rows: Sequence[Row], mode: Mode, samples: int, seed: int) -> dict[str, Any]:
    """Mean score of at least one row, with its interval, denominator, and how many answers could not be read."""
    unparsable = sum(not row[f"parsed_{mode}"] for row in rows)
    counts = {"n": len(rows), "questions_digest": _questions_digest(rows), "unparsable": unparsable}
    return counts | _accuracy(mean_interval(_values(rows, mode), samples, seed))


def _questions_digest(rows: Iterable[Row]) -> str:
    """The same for the same question ids in any order."""
    return hashlib.sha256(json.dumps(sorted(row["question_id"] for row in rows)).encode()).hexdigest()[:32]


def _task(name: str, rows: Sequence[Row], usable: Sequence[Row], samples: int, seed: int) -> dict[str, Any]:
    """Rows, denominator and score of one task, all its columns together, per model and mode."""
    asked = [row for row in usable if row.get("task") == name]
    everything = {row["question_id"]: row["verdict"] for row in rows if row.get("task") == name}
    counted = {row["question_id"] for row in asked}
    verdicts = Counter(str(verdict) for key, verdict in everything.items() if key not in counted)
    models = {}
    for model in MODELS:
        own = [row for row in asked if row["model"] == model]
        models[model] = {mode: cell(own, mode, samples, seed) for mode in MODES} if own else None
    return {
        "rows": len(everything),
        "n": len(counted),
        "unusable": len(everything) - len(counted),
        "verdicts": dict(sorted(verdicts.items())),
        "types": _types(asked),
        "models": models,
    }


def _types(rows: Sequence[Row]) -> dict[str, dict[str, dict[Mode, str]]]:
    """Which metrics each column is scored with, and what they mean."""
    found: dict[str, dict[str, dict[Mode, str]]] = {}
    for type_, metric in sorted({(row["type"], row["metric"]) for row in rows}):
        found.setdefault(type_, {})[metric] = METRICS[metric].protocol
    return found


def _accuracy(interval: Interval) -> dict[str, float]:
    return {"accuracy": interval.value, "lo": interval.lo, "hi": interval.hi}


def _values(rows: Sequence[Row], mode: Mode) -> list[float]:
    return [float(row[f"score_{mode}"]) for row in rows]


def _paired(base: Sequence[Row], adapted: Sequence[Row], mode: Mode) -> tuple[list[float], list[float]]:
    if [row["question_id"] for row in base] != [row["question_id"] for row in adapted]:
        raise ValueError("the two models were not asked the same questions")
    return _values(base, mode), _values(adapted, mode)


def _told(found: Difference) -> dict[str, float]:
    return {"value": found.value, "lo": found.lo, "hi": found.hi, "p": found.p}


def _baseline(item: Baseline, groups: Groups, types: Sequence[str], mode: Mode) -> dict[str, Any]:
    """Over exactly the questions that the models were scored on."""
    known = item.values[mode]
    values = {name: [known[row["question_id"]] for row in groups[name]] for name in types}
    shares = {name: sum(group) / len(group) for name, group in values.items()}
    everything = [value for group in values.values() for value in group]
    return {
        "fitted_on": item.fitted_on,
        "types": shares,
        "overall": sum(everything) / len(everything) if everything else None,
        "average": sum(shares.values()) / len(shares) if shares else None,
    }
