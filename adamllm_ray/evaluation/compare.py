"""Two finished runs, the same questions: which one's model is better, by how much, at what certainty.

    adamllm compare runs/a runs/b                     adapted model of each, strict scores
    adamllm compare runs/a runs/a --model base,adapted

Reads ``evaluate/data`` of both runs; asks no model. Rows are paired by question id, and a question counts only where
every run of both sides has a score for it; the others are counted and named. Several runs of one arm (seeds) are
pooled: per question the mean of their scores (`intervals.pooled`). The difference is B - A. General tasks (the
forgetting check, ``evaluation.general``) have lines of their own and are in no average and no verdict.

Means under both kinds of metric and each task's protocol stand beside it; runs that did not ask in the same way (token
limit, backend, split, ...) are told, runs that asked other things under one id are refused (protocols.py).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.errors import ConfigError, RowAccountingError, SourceError, foreign
from adamllm_ray.evaluation.baselines import MODES
from adamllm_ray.evaluation.intervals import (
    ALPHA,
    Difference,
    Interval,
    average_difference,
    average_interval,
    holm,
    mean_interval,
    paired_difference,
    pooled,
    verdict,
)
from adamllm_ray.evaluation.metrics import Mode
from adamllm_ray.evaluation.protocols import check_contents, differences, protocol_lines

ASKED = ("task", "type", "kind", "metric", "question", "answer")  # what makes a question the same question
NAMED = 5  # ids that a message holds

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """One side: a model ('adapted', 'base') in one run, or in several that differ in their seed only."""

    runs: tuple[str, ...]
    model: str = "adapted"


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table. ``adjusted`` is p after Holm over all groups, None for a row that is no group."""

    task: str
    type: str
    n: int
    a: Interval
    b: Interval
    difference: Difference
    unparsable: tuple[float, float]  # questions of A and of B, mean over its runs
    adjusted: float | None = None


@dataclass(frozen=True, slots=True)
class Both:
    """One row of the second table: means of (A, B) and how many answers of each could not be read, per mode."""

    task: str
    type: str
    n: int
    means: dict[Mode, tuple[float, float]]
    unparsable: dict[Mode, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found. ``missing`` (per run) and ``unusable`` hold ids of questions that were left out."""

    a: Arm
    b: Arm
    metrics: Mode
    lines: list[Line]
    general: list[Line]  # of tasks that some run asked as general ones
    overall: Line  # every question once
    average: Line  # unweighted mean over the lines, as in the paper
    run_means: tuple[list[float], list[float]]  # of each run of A and of B: how far seeds lie apart
    missing: list[tuple[str, list[str]]]  # a run that was not asked questions that another one was, and these
    unusable: list[str]
    verdict: str
    groups_verdict: str
    modes: list[Both]  # the same rows, general ones included, under both kinds of metric
    protocols: list[str]  # a line per task
    warnings: list[str]  # what the runs did not do in the same way

    def to_json(self) -> str:
        """Everything, as one JSON object."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True, slots=True)
class _Side:
    """Per run the rows of the arm's model by question id."""

    runs: list[dict[str, Row]]
    general: set[str]  # tasks of the forgetting check

    def scores(self, ids: Sequence[str], column: str) -> list[list[float]]:
        """Per run."""
        return [[float(run[name][column]) for name in ids] for run in self.runs]

    def means(self, ids: Sequence[str], column: str) -> list[float]:
        """Per run."""
        return [sum(run) / len(run) for run in self.scores(ids, column)]

    def unparsable(self, ids: Sequence[str], column: str) -> float:
        """How many answers could not be read, mean over the runs."""
        return sum(not run[name][column] for run in self.runs for name in ids) / len(self.runs)


def compare(a: Arm, b: Arm, metrics: Mode = "strict", *, samples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two arms on the questions that all of their runs were asked.

    Args:
        a: the side that B is held against.
        b: the other side.
        metrics: which of the two scores of each answer.
        samples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        ConfigError: a run has no finished evaluation, or none of that model.
        SourceError: a run was evaluated by a version that did not write these scores; the runs asked different
            questions under one id; they have no question in common.
        StorageError: a run cannot be read.
    """
    sides = (_read(a), _read(b))
    names, runs = (*a.runs, *b.runs), [run for side in sides for run in side.runs]
    _check_same_questions(names, runs)
    everything: set[str] = set().union(*runs)
    missing = [(name, sorted(everything - set(run))) for name, run in zip(names, runs, strict=True)]
    shared = everything.difference(*(ids for _, ids in missing))
    column = f"score_{metrics}"
    unusable = {name for run in runs for name in shared if any(run[name][f"score_{mode}"] is None for mode in MODES)}
    general = sides[0].general | sides[1].general
    beside = {name for name in shared - unusable if runs[0][name]["task"] in general}
    ids = sorted(shared - unusable - beside)
    if not ids:
        raise SourceError(
            f"there is nothing to compare: of {len(shared)} questions that every run was asked, none is of the domain "
            f"and has a score. "
            f"A: {foreign(', '.join(a.runs))}; B: {foreign(', '.join(b.runs))}"
        )
    unchecked = check_contents(names, shared - unusable)
    tasks = sorted({runs[0][name]["task"] for name in shared - unusable})
    made = _Lines(sides, metrics, samples, seed)
    groups = made.groups(ids)
    lines = _adjusted([made.line(*key, groups[key]) for key in sorted(groups)])
    apart = made.groups(sorted(beside))
    average = made.average(list(groups.values()))
    return Comparison(
        a,
        b,
        metrics,
        lines,
        [made.line(*key, apart[key]) for key in sorted(apart)],
        made.line("all", "all questions", ids),
        average,
        (sides[0].means(ids, column), sides[1].means(ids, column)),
        [(name, ids) for name, ids in missing if ids],
        sorted(unusable),
        verdict(average.difference, average.n),
        _groups_verdict(lines),
        made.modes(groups, apart),
        protocol_lines(names, tasks),
        [*differences(names, tasks), *unchecked],
    )


@dataclass(frozen=True, slots=True)
class _Lines:
    """Makes the rows of the table out of question ids."""

    sides: tuple[_Side, _Side]
    metrics: Mode
    samples: int
    seed: int

    def groups(self, ids: Iterable[str]) -> dict[tuple[str, str], list[str]]:
        """Ids by (task, type)."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name in ids:
            row = self.sides[0].runs[0][name]
            found[row["task"], row["type"]].append(name)
        return found

    def line(self, task: str, kind: str, ids: Sequence[str]) -> Line:
        first, second = self._scores(ids)
        a, b = (mean_interval(values, self.samples, self.seed) for values in (first, second))
        difference = paired_difference(first, second, self.samples, self.seed)
        return Line(task, kind, len(ids), a, b, difference, self._unparsable(ids))

    def average(self, groups: Sequence[Sequence[str]]) -> Line:
        pairs = [self._scores(ids) for ids in groups]
        a, b = (average_interval([pair[side] for pair in pairs], self.samples, self.seed) for side in (0, 1))
        ids = [name for group in groups for name in group]
        difference = average_difference(pairs, self.samples, self.seed)
        return Line("all", "mean over types", len(ids), a, b, difference, self._unparsable(ids))

    def modes(
        self, groups: Mapping[tuple[str, str], Sequence[str]], general: Mapping[Any, Sequence[str]]
    ) -> list[Both]:
        """A row per group, for all questions of the domain, for the mean over its groups, and per general group."""
        rows = [self._both(*key, [groups[key]]) for key in sorted(groups)]
        ids = [name for group in groups.values() for name in group]
        rows += [self._both("all", "all questions", [ids]), self._both("all", "mean over types", list(groups.values()))]
        return rows + [self._both(f"{task} (general)", kind, [general[task, kind]]) for task, kind in sorted(general)]

    def _both(self, task: str, kind: str, groups: Sequence[Sequence[str]]) -> Both:
        ids = [name for group in groups for name in group]
        means, unparsable = {}, {}
        for mode in MODES:
            per_group = [[pooled(side.scores(one, f"score_{mode}")).mean() for one in groups] for side in self.sides]
            a, b = (float(sum(values) / len(values)) for values in per_group)
            c, d = (side.unparsable(ids, f"parsed_{mode}") for side in self.sides)
            means[mode], unparsable[mode] = (a, b), (c, d)
        return Both(task, kind, len(ids), means, unparsable)

    def _scores(self, ids: Sequence[str]) -> tuple[Any, Any]:
        first, second = (pooled(side.scores(ids, f"score_{self.metrics}")) for side in self.sides)
        return first, second

    def _unparsable(self, ids: Sequence[str]) -> tuple[float, float]:
        first, second = (side.unparsable(ids, f"parsed_{self.metrics}") for side in self.sides)
        return first, second


def _adjusted(lines: Sequence[Line]) -> list[Line]:
    p_values = holm([line.difference.p for line in lines])
    return [replace(line, adjusted=p) for line, p in zip(lines, p_values, strict=True)]


def _groups_verdict(lines: Sequence[Line]) -> str:
    """Which groups hold when looked at together: one of twenty looks different by chance."""
    if len(lines) == 1:
        return ""
    better, worse = (
        [
            foreign(f"{one.task} / {one.type}", 80)
            for one in lines
            if (one.adjusted or 0) < ALPHA and one.difference.value * sign > 0
        ]
        for sign in (1, -1)
    )
    told = [f"B is better on {', '.join(better)}"] if better else []
    told += [f"A is better on {', '.join(worse)}"] if worse else []
    rest = len(lines) - len(better) - len(worse)
    told += [f"no difference can be told on {rest} of {len(lines)} groups"] if rest else []
    return f"Group by group (p adjusted for {len(lines)} looks, Holm): {'; '.join(told)}."


def _read(arm: Arm) -> _Side:
    runs = [_read_run(run, arm.model) for run in arm.runs]
    return _Side(runs, {task for run in arm.runs for task in _general(run)})


def _general(run: str) -> Iterable[str]:
    """Tasks that this run asked for its forgetting check."""
    manifest = RunFolder(run).stage("evaluate").manifest()
    scores = manifest.extra.get("scores") if manifest else None
    return [name for name, task in ((scores or {}).get("tasks") or {}).items() if task["general"]]


def _read_run(run: str, model: str) -> dict[str, Row]:
    stage = RunFolder(run).stage("evaluate")
    if stage.manifest() is None:
        raise ConfigError(f"{foreign(run)} holds no finished evaluation: run `adamllm evaluate` on it first")
    wanted = ["question_id", "model", *ASKED, *(f"{what}_{mode}" for what in ("score", "parsed") for mode in MODES)]
    rows = _rows(stage, wanted)
    found = [row for row in rows if row["model"] == model]
    if not found:
        models = ", ".join(sorted({row["model"] for row in rows})) or "none"
        raise ConfigError(f"{foreign(run)} has no answers of a model {model!r}; it has: {models}. Set --model")
    twice = [name for name, count in Counter(row["question_id"] for row in found).items() if count > 1]
    if twice:
        raise RowAccountingError(f"{foreign(run)} has {len(twice)} questions twice for one model: {_names(twice)}")
    return {row["question_id"]: row for row in found}


def _rows(stage: StageFolder, columns: Sequence[str]) -> list[dict[str, Any]]:
    tables = []
    with storage.storage_errors("read the evaluation", stage.uri):
        for path in stage.parquet_files():
            file = pq.ParquetFile(path, filesystem=stage.fs)
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise SourceError(
                    f"{stage.uri} has no {', '.join(missing)}: an earlier version evaluated it; run `adamllm evaluate "
                    "--force-new` there again"
                )
            tables.append(file.read(columns=list(columns)))
    return pa.concat_tables(tables, promote_options="default").to_pylist() if tables else []


def _check_same_questions(names: Sequence[str], runs: Sequence[Mapping[str, Row]]) -> None:
    """Every run must have asked the same under the same id as the first run that has this id."""
    first: dict[str, tuple[str, Row]] = {}
    for run, rows in zip(names, runs, strict=True):
        for name, row in rows.items():
            other, known = first.setdefault(name, (run, row))
            differing = [column for column in ASKED if row[column] != known[column]]
            if differing:
                raise SourceError(
                    f"question {foreign(name, 80)!r} is not the same in {foreign(other)} and {foreign(run)} "
                    f"({differing[0]}: {foreign(known[differing[0]], 80)!r} and {foreign(row[differing[0]], 80)!r}): "
                    "these runs were evaluated on different tasks and cannot be compared"
                )


def _names(ids: Iterable[str]) -> str:
    listed = list(ids)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(foreign(name, 80) for name in listed[:NAMED]) + more


def left_out(found: Comparison) -> list[str]:
    """What was not compared, in sentences; ids are named, the first few."""
    told = [f"left out: {len(ids)} that {foreign(run)} was not asked: {_names(ids)}" for run, ids in found.missing]
    if found.unusable:
        told.append(f"left out: {len(found.unusable)} that some run could not use: {_names(found.unusable)}")
    return told
