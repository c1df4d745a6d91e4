"""The evaluation's scores -> tables for the page: base, adapted, ablations, their difference and the baselines.

The layout of scores is described in `evaluation.scores`. Beside the scores themselves, the evaluation may give the
same layout under the published metrics (``paper``) and for the general task set of the forgetting check (``general``),
and a description of each task (``tasks``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adamllm_ray.report import collect as facts

MODELS = ("base", "adapted")
FIRST = ("protocol", "split", "rows", "n", "unusable", "verdicts")  # columns of the tasks, before what else is said
SHOWN = {"verdicts": "why unusable", "paper_rows": "rows in the paper"}  # heads of columns
TITLES = {
    "strict": "Scores",
    "paper": "The same answers under the published metrics",
    "general": "General tasks: what was forgotten",
}
NOTES = {
    "strict": "An answer that cannot be read counts as wrong; nothing is guessed.",
    "paper": "As the paper's code scores them, its quirks included: for comparison with published tables.",
    "general": "Questions from outside the domain. A negative difference is what the adaptation cost.",
}


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One question type, or all of them. Cells are None where a model was not asked."""

    label: str
    n: int
    cells: list[Mapping[str, Any] | None]
    difference: Mapping[str, Any]
    baselines: list[float | None]
    unparsable: list[int]
    total: bool = False


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """One table; ``models`` are the columns of ``cells``."""

    key: str
    title: str
    note: str
    scores: Mapping[str, Any]
    models: list[str]
    rows: list[ScoreRow]
    denominators: list[str]  # of each task
    graded: bool  # a figure is a mean score, not a share of right answers
    remarks: list[str]  # on the columns of other runs


def score_tables(scores: Mapping[str, Any] | None, ablations: Mapping[str, Any]) -> list[ScoreTable]:
    """The tables that there are scores for. ``ablations``: name -> scores of another run."""
    if not scores:
        return []
    found = [("strict", scores), *((key, scores[key]) for key in ("paper", "general") if scores.get(key))]
    if not _published(scores):
        found = [(key, each) for key, each in found if key != "paper"]
    tables = []
    for key, each in found:
        if each["models"]["base"]["overall"]:
            others = {name: other if key == "strict" else other.get(key) for name, other in ablations.items()}
            others = {name: other for name, other in others.items() if other}
            tables.append(_table(key, scores, each, others))
    return tables


def _published(scores: Mapping[str, Any]) -> bool:
    """Whether the published metrics have something to say: a published benchmark was asked, or they differ."""
    tasks: Mapping[str, Any] = scores.get("tasks") or {}
    return any("paper_rows" in task for task in tasks.values()) or (
        (scores.get("paper") or scores)["models"] != scores["models"]
    )


def task_rows(scores: Mapping[str, Any] | None) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows) of what was asked: protocol, split, denominator and what else is said of each task."""
    tasks: Mapping[str, Mapping[str, Any]] = (scores or {}).get("tasks") or {}
    plain = {
        name: {
            key: words
            for key, value in item.items()
            if (words := _words(key, value, item)) is not None and (key, value) != ("title", name)
        }
        for name, item in tasks.items()
    }
    there = dict.fromkeys(key for item in plain.values() for key in item)
    columns = [*(key for key in FIRST if key in there), *(key for key in there if key not in FIRST)]
    heads = ["task", *(SHOWN.get(key, key) for key in columns)]
    return heads, [[name, *(item.get(key, "") for key in columns)] for name, item in plain.items()]


def _words(key: str, value: Any, task: Mapping[str, Any]) -> str | int | float | None:
    """What is said of a task, as a cell; None for what stands in tables of its own."""
    if key == "verdicts":
        return facts.lost_rows(task)
    if key == "paper_rows":
        return ", ".join(f"{column} {count:,}" for column, count in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str | int | float) else None


def metric_rows(scores: Mapping[str, Any] | None) -> list[tuple[str, str, str, str]]:
    """(metric, the columns that it scores, what it means under strict, under paper), each metric once."""
    columns: dict[tuple[str, str, str], list[str]] = {}
    for task in ((scores or {}).get("tasks") or {}).values():
        for column, metrics in task.get("types", {}).items():
            for name, said in metrics.items():
                columns.setdefault((name, said["strict"], said["paper"]), []).append(column)
    return [
        (name, ", ".join(dict.fromkeys(found)), strict, paper)
        for (name, strict, paper), found in sorted(columns.items())
    ]


def denominators(scores: Mapping[str, Any], *, general: bool = False) -> list[str]:
    """A sentence per task of the domain (or of the forgetting check): its denominator, and what is not in it."""
    tasks: Mapping[str, Mapping[str, Any]] = scores.get("tasks") or {}
    return [
        f"{name}: {facts.denominator(task)}."
        for name, task in tasks.items()
        if bool(task.get("general")) == general and {"n", "rows"} <= task.keys()
    ]


def _table(
    key: str, everything: Mapping[str, Any], scores: Mapping[str, Any], ablations: Mapping[str, Any]
) -> ScoreTable:
    general = key == "general"
    graded = key == "paper" or facts.graded(everything, general=general)
    asked = denominators(everything, general=general)
    own = {name: scores["models"][name] for name in MODELS}
    others = {name: item["models"]["adapted"] for name, item in ablations.items()}
    places: list[tuple[str, tuple[str, ...]]] = [(name.replace("_", " "), ("types", name)) for name in scores["types"]]
    places += [("all questions", ("overall",)), ("mean over types", ("average",))]
    rows = [_row(label, scores, [*own.values()], [*others.values()], path) for label, path in places]
    remarks = _remarks(scores["models"]["base"], others, [path for _, path in places])
    return ScoreTable(key, TITLES[key], NOTES[key], scores, [*own, *others], rows, asked, graded, remarks)


def _row(
    label: str, scores: Mapping[str, Any], own: Sequence[Any], others: Sequence[Any], path: tuple[str, ...]
) -> ScoreRow:
    base, adapted = (_at(item, path) for item in own)
    cells = [cell if cell and _same(cell, base) is not False else None for cell in (_at(one, path) for one in others)]
    return ScoreRow(
        label=label,
        n=base["n"],
        cells=[base, adapted, *cells],
        difference=_at(scores["difference"], path) or {},
        baselines=[_at(item, path) for item in scores.get("baselines", {}).values()],
        unparsable=[cell.get("unparsable", 0) for cell in (base, adapted) if cell is not None],
        total=path == ("overall",),
    )


def _same(cell: Mapping[str, Any], base: Mapping[str, Any]) -> bool | None:
    """Whether two cells are about the same questions; None where an earlier version evaluated one of the runs."""
    digests = {cell.get("questions_digest"), base.get("questions_digest")}
    if cell["n"] != base["n"]:
        return False
    return None if None in digests else len(digests) == 1


def _remarks(base: Mapping[str, Any], others: Mapping[str, Any], paths: Sequence[tuple[str, ...]]) -> list[str]:
    """What has to be said of the columns of other runs: not the same questions, or nobody knows."""
    told = []
    for name, item in others.items():
        found = [_same(cell, _at(base, path)) for path in paths if (cell := _at(item, path))]
        if False in found:
            told.append(
                f"{name} was asked other questions in {found.count(False)} of {len(found)} rows: no figure there."
            )
        if None in found:
            why = "an earlier version evaluated it or this run"
            told.append(f"Whether {name} was asked the same questions cannot be told: {why}.")
    return told


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
