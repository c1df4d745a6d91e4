"""Scored predictions -> the numbers of the report: per model and question type, differences, baselines.

The layout, which the report and the CLI read (``extra["scores"]`` of the evaluate manifest)::

    types        [name, ...] in alphabetical order
    models       {"base" | "adapted": {"types": {name: CELL}, "overall": CELL, "average": CELL}}
    difference   {"types": {name: DIFF}, "overall": DIFF, "average": DIFF}     adapted - base, same questions
    baselines    {name: {"fitted_on", "types": {name: share}, "overall": share, "average": share}}

CELL is {n, accuracy, lo, hi, unparsable} (+ recall for free text), DIFF is {value, lo, hi, p}; all shares in 0..1.
"overall" counts every question once; "average" is the unweighted mean over types, as in the paper.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adamllm_ray.evaluation.baselines import Baseline
from adamllm_ray.evaluation.intervals import (
    Difference,
    Interval,
    average_difference,
    average_interval,
    mean_interval,
    paired_difference,
)

MODELS = ("base", "adapted")
Row = Mapping[str, Any]


def summarise(
    rows: Sequence[Row], baselines: Iterable[Baseline] = (), *, samples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """The scores of a predictions table.

    Args:
        rows: one per (model, question) with question_id, model, type, parsed, recall and score (0 or 1; None when
            the question itself could not be used, which leaves it out for every model).
        baselines: fitted on the same questions.
        samples: bootstrap resamples.
        seed: of the bootstrap.
    """
    unusable = {row["question_id"] for row in rows if row["score"] is None}
    models: dict[str, dict[str, list[Row]]] = {name: defaultdict(list) for name in MODELS}
    for row in sorted(rows, key=lambda row: row["question_id"]):
        if row["question_id"] not in unusable:
            models[row["model"]][row["type"]].append(row)
    types = sorted(models["base"])
    return {
        "types": types,
        "unusable": len(unusable),
        "models": {name: _model(groups, samples, seed) for name, groups in models.items()},
        "difference": _difference(models["base"], models["adapted"], types, samples, seed),
        "baselines": {item.name: _baseline(item, models["base"], types) for item in baselines},
        "bootstrap_samples": samples,
    }


def _model(groups: Mapping[str, list[Row]], samples: int, seed: int) -> dict[str, Any]:
    if not groups:
        return {"types": {}, "overall": None, "average": None}
    everything = [row for name in sorted(groups) for row in groups[name]]
    average = average_interval([_values(groups[name]) for name in sorted(groups)], samples, seed)
    overall = _cell(everything, samples, seed)
    return {
        "types": {name: _cell(groups[name], samples, seed) for name in sorted(groups)},
        "overall": overall,
        "average": overall | _accuracy(average),
    }


def _cell(rows: Sequence[Row], samples: int, seed: int) -> dict[str, Any]:
    cell: dict[str, Any] = {"n": len(rows), "unparsable": sum(not row["parsed"] for row in rows)}
    recalls = [row["recall"] for row in rows if row.get("recall") is not None]
    if recalls:
        cell["recall"] = sum(recalls) / len(recalls)
    return cell | _accuracy(mean_interval(_values(rows), samples, seed))


def _accuracy(interval: Interval) -> dict[str, float]:
    return {"accuracy": interval.value, "lo": interval.lo, "hi": interval.hi}


def _values(rows: Sequence[Row]) -> list[int]:
    return [int(row["score"]) for row in rows]


def _difference(
    base: Mapping[str, list[Row]], adapted: Mapping[str, list[Row]], types: Sequence[str], samples: int, seed: int
) -> dict[str, Any]:
    """Paired by question: both lists of a type are sorted by id."""
    if not types:
        return {"types": {}, "overall": None, "average": None}
    pairs = {name: _paired(base[name], adapted[name]) for name in types}
    everything = [pair for name in types for pair in pairs[name]]
    average = average_difference([_columns(pairs[name]) for name in types], samples, seed)
    return {
        "types": {name: _gain(pairs[name], samples, seed) for name in types},
        "overall": _gain(everything, samples, seed),
        "average": _told(average),
    }


def _paired(base: Sequence[Row], adapted: Sequence[Row]) -> list[tuple[int, int]]:
    if [row["question_id"] for row in base] != [row["question_id"] for row in adapted]:
        raise ValueError("the two models were not asked the same questions")
    return list(zip(_values(base), _values(adapted), strict=True))


def _gain(pairs: Sequence[tuple[int, int]], samples: int, seed: int) -> dict[str, float]:
    return _told(paired_difference(*_columns(pairs), samples, seed))


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [before for before, _ in pairs], [after for _, after in pairs]


def _told(found: Difference) -> dict[str, float]:
    return {"value": found.value, "lo": found.lo, "hi": found.hi, "p": found.p}


def _baseline(item: Baseline, groups: Mapping[str, list[Row]], types: Sequence[str]) -> dict[str, Any]:
    """Over exactly the questions that the models were scored on."""
    values = {name: [item.values[row["question_id"]] for row in groups[name]] for name in types}
    shares = {name: sum(group) / len(group) for name, group in values.items()}
    everything = [value for group in values.values() for value in group]
    return {
        "fitted_on": item.fitted_on,
        "types": shares,
        "overall": sum(everything) / len(everything) if everything else None,
        "average": sum(shares.values()) / len(shares) if shares else None,
    }
