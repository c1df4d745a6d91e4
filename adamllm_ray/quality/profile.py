"""What a synthesis wrote, in one pass over its text columns: no image is read.

    Profile(seed=0, check=None).read(stage).result()

Memory: 8 bytes per kept question (to count different ones), counters of lengths and openings of bounded size, and the
20,000 texts drawn by hash that distinct-n is computed on: it falls with the number of texts, so two runs compare only
at a fixed one.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from adamllm_ray.data.draws import uniform
from adamllm_ray.data.identity import read_columns
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.storage import storage_errors
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.quality.calibration import Agreement, Calibration, follows_literally
from adamllm_ray.quality.questions import entropy, normal, opening, question_type, words_of

Row = Mapping[str, Any]
Check = Callable[[Row], bool | None]  # a row's gold label: its task is right, wrong, or not known

COLUMNS = ["id", "meta", "caption", "instruction", "informative", "precise", "judge_yes", "task_verdict"]
TEXTS = ("caption", "instruction", "informative", "precise")
JUDGED = (Verdict.KEPT, Verdict.JUDGED_INCONSISTENT, Verdict.JUDGED_OPEN)
SAMPLE = 20_000  # texts for distinct-n
LONGEST = 4096  # words; a text that is longer counts as this long
MOST_OPENINGS = 20_000  # kept apart; the rarer half is folded together beyond it
THRESHOLDS = 50  # bins of P(Yes)


class Profile:
    """Counts over the rows of a synthesis. ``check``: gold labels, where there are any."""

    def __init__(self, seed: int, check: Check | None = None) -> None:
        self._seed, self._check = seed, check
        self.verdicts: Counter[str] = Counter()
        self.lengths: dict[str, Counter[int]] = {name: Counter() for name in TEXTS}
        self.types: dict[str, list[int]] = {}  # judged, kept
        self.openings: Counter[str] = Counter()
        self.probabilities = [0] * THRESHOLDS
        self.calibration, self.agreement = Calibration(), Agreement()
        self.right = {"judged": [0, 0], "kept": [0, 0]}  # labelled, right
        self._questions = array("Q")
        self._sample: list[tuple[float, str, str, str]] = []
        self._folded = 0

    def read(self, stage: StageFolder) -> Profile:
        """Add every row of a synthesize stage."""
        with storage_errors("read the tasks", stage.uri):
            for batch in read_columns(stage.fs, stage.parquet_files(), COLUMNS):
                for start in range(0, len(batch), 4096):  # rows that are Python objects at a time
                    self.add(batch.slice(start, 4096).to_pylist())
        return self

    def add(self, rows: Iterable[Row]) -> None:
        """Add some rows."""
        for row in rows:
            verdict = row["task_verdict"]
            self.verdicts[verdict] += 1
            if verdict in JUDGED:
                self._add_judged(row, verdict == Verdict.KEPT)
            if verdict == Verdict.KEPT:
                self._add_kept(row)
        if len(self.openings) > MOST_OPENINGS:
            common = Counter(dict(self.openings.most_common(MOST_OPENINGS // 2)))
            self._folded += sum(self.openings.values()) - sum(common.values())
            self.openings = common

    def _add_judged(self, row: Row, kept: bool) -> None:
        counts = self.types.setdefault(question_type(row["instruction"]), [0, 0])
        counts[0] += 1
        counts[1] += kept
        yes = row["judge_yes"]
        self.agreement.add(kept, follows_literally(row["informative"], row["precise"]))
        if yes is not None:
            self.probabilities[min(int(yes * THRESHOLDS), THRESHOLDS - 1)] += 1
        right = self._check(row) if self._check is not None else None
        if right is None:
            return
        if yes is not None:
            self.calibration.add(yes, right)
        for group in ("judged", "kept") if kept else ("judged",):
            self.right[group][0] += 1
            self.right[group][1] += right

    def _add_kept(self, row: Row) -> None:
        for name in TEXTS:
            self.lengths[name][min(len(words_of(row[name])), LONGEST)] += 1
        self.openings[opening(row["instruction"])] += 1
        digest = hashlib.blake2b(normal(row["instruction"]).encode(), digest_size=8).digest()
        self._questions.append(int.from_bytes(digest, "little"))
        answers = f"{row['informative']} {row['precise']}"
        entry = (-uniform(self._seed, "profile", row["id"]), row["id"], row["instruction"], answers)
        if len(self._sample) < SAMPLE:
            heapq.heappush(self._sample, entry)
        else:
            heapq.heappushpop(self._sample, entry)

    def result(self) -> dict[str, Any]:
        """Plain JSON values; `report` shows them."""
        rows, kept = sum(self.verdicts.values()), self.verdicts[Verdict.KEPT]
        different = len(np.unique(np.frombuffer(self._questions, np.uint64))) if self._questions else 0
        labelled = {name: {"labelled": n, "right": right} for name, (n, right) in self.right.items()}
        return {
            "rows": rows,
            "verdicts": dict(self.verdicts),
            "kept": kept,
            "different_questions": different,
            "types": self._types(),
            "type_entropy": entropy([count for _, count in self.types.values()]),
            "opening_entropy": entropy([*self.openings.values(), self._folded]),
            "openings": [[text, count] for text, count in _most(self.openings, 12)],
            "lengths": {name: _quantiles(counts) for name, counts in self.lengths.items() if counts},
            "distinct": self._distinct(),
            "keep_curve": self._keep_curve(),
            "probabilities": self.probabilities,
            "agreement": self.agreement.result(),
            "calibration": self.calibration.result(),
            "right": labelled if self.right["judged"][0] else None,
        }

    def _types(self) -> list[dict[str, Any]]:
        judged, kept = (sum(counts[index] for counts in self.types.values()) or 1 for index in (0, 1))
        rows = [
            {"type": name, "judged": a, "kept": b, "keep_rate": b / a, "share": b / kept, "share_judged": a / judged}
            for name, (a, b) in self.types.items()
        ]
        return sorted(rows, key=lambda row: (-row["kept"], row["type"]))

    def _distinct(self) -> dict[str, Any]:
        texts = {"questions": [entry[2] for entry in self._sample], "answers": [entry[3] for entry in self._sample]}
        return {"texts": len(self._sample)} | {
            name: [distinct_n(found, n) for n in (1, 2, 3)] for name, found in texts.items()
        }

    def _keep_curve(self) -> list[list[float]]:
        """[threshold, share of judged tasks with at least this P(Yes)] over all thresholds."""
        total = sum(self.probabilities)
        above, curve = total, []
        for index, count in enumerate(self.probabilities):
            curve.append([index / THRESHOLDS, above / total if total else 0.0])
            above -= count
        return [*curve, [1.0, 0.0]] if total else []


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Different n-grams of words over all of them (Li et al. 2016); None when no text has n words."""
    seen: set[int] = set()  # hashes of n-grams: a fifth of the memory, and no two of a million are the same
    total = 0
    for text in texts:
        words = words_of(text)
        grams = list(zip(*(words[start:] for start in range(n)), strict=False))
        seen.update(map(hash, grams))
        total += len(grams)
    return len(seen) / total if total else None


def labels_by_hand(rows: Iterable[Mapping[str, Any]]) -> Check:
    """Labels given by hand, {"id": ..., "right": true or false}, as a check."""
    labels: dict[str, bool] = {str(row["id"]): row["right"] for row in rows}
    return lambda row: labels.get(row["id"])


def pocket_labels(row: Row) -> bool | None:
    """The pocket domain's own label: both answers are true of the chip."""
    from adamllm_ray.pocket.domain import check_triplet

    return check_triplet(json.loads(row["meta"] or "{}"), row["instruction"], row["informative"], row["precise"])


def _most(counts: Counter[str], number: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]


def _quantiles(counts: Counter[int]) -> dict[str, float]:
    """Of lengths that are kept as counts: exact."""
    lengths = np.array(sorted(counts), np.int64)
    numbers = np.array([counts[length] for length in lengths.tolist()], np.int64)
    ends = np.cumsum(numbers)
    places = [0.05, 0.5, 0.95]
    found = [int(lengths[np.searchsorted(ends, share * ends[-1])]) for share in places]
    mean = float((lengths * numbers).sum() / ends[-1])
    return {"mean": mean, "p5": found[0], "median": found[1], "p95": found[2], "longest": int(lengths[-1])}
