"""Arithmetic of benchmarks/soak.py: how long it takes from a kill until work goes on, and whether memory grows.

Times are seconds since 1970 on one machine. A block's name is that of its entry in Ray's ledger: the execution that
wrote it, an underscore, and its number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

WARM_S = 60.0  # of a process, before its memory is fitted: imports, thread pools and malloc's arenas fill
ENOUGH_SAMPLES = 10

Sample = tuple[float, float]  # time, MB


@dataclass(frozen=True)
class Kill:
    """``life``: number of the driver that worked at that moment. ``before``: synthesizers that were alive then."""

    kind: str
    at: float
    life: int
    before: tuple[int, ...] = ()


def execution_of(block: str) -> str:
    """Which execution, and so which driver, wrote a block."""
    return block.partition("_")[0]


def next_row(kill: Kill, commits: Mapping[str, float]) -> float | None:
    """Seconds from the kill until rows are committed again; None when none were.

    After the driver only rows of a new one count: writes that the old one had begun may still end well.
    """
    old = {execution_of(block) for block, at in commits.items() if at <= kill.at} if kill.kind == "driver" else set()
    later = [at for block, at in commits.items() if at > kill.at and execution_of(block) not in old]
    return min(later) - kill.at if later else None


def replaced(kill: Kill, asked: Sequence[Sequence[tuple[int, float]]]) -> float | None:
    """Seconds from the kill until a synthesizer that was not there before is asked for a row; None when none is.

    ``asked``: of each life of the driver, (process id, time) of the rows that its synthesizers were asked for.
    """
    lives = asked[kill.life + 1 :] if kill.kind == "driver" else asked[kill.life : kill.life + 1]
    before = () if kill.kind == "driver" else kill.before
    later = [at for life in lives for pid, at in life if at > kill.at and pid not in before]
    return min(later) - kill.at if later else None


def by_kind(kills: Iterable[Kill], seconds: Iterable[float | None]) -> dict[str, dict[str, Any]]:
    """How many kills of each kind, how many of them were followed by what was waited for, and after how long."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for kill, duration in zip(kills, seconds, strict=True):
        found[kill.kind].append(duration)
    return {kind: _summary(times) for kind, times in sorted(found.items())}


def _summary(times: Sequence[float | None]) -> dict[str, Any]:
    known = [one for one in times if one is not None]
    figures = {"median_s": round(median(known), 1), "worst_s": round(max(known), 1)} if known else {}
    return {"kills": len(times), "followed": len(known), **figures}


def rows_per_s(commits: Iterable[float], rows: int, share: float = 1.0) -> float:
    """From the first committed block until ``share`` of all blocks are. ``rows``: in all blocks together."""
    times = sorted(commits)
    last = max(2, round(share * len(times)))
    if len(times) < 2:
        raise ValueError("one block has no rate")
    return rows / len(times) * (last - 1) / (times[last - 1] - times[0])


def asked_again(rows: Sequence[str]) -> dict[str, float]:
    """Which share of the rows an engine was asked for more than once, and requests per row, by the rows' ids."""
    times = Counter(rows)
    again = sum(number > 1 for number in times.values())
    return {"recomputed_share": again / len(times), "requests_per_row": len(rows) / len(times)}


def memory(processes: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    """Of all processes of one kind, oldest first: the highest figures, and one slope within their lives.

    ``mb_per_minute`` is a common least-squares slope with a level of its own for each process, after its first minute:
    a process that starts larger than another one is no growth. None when there is too little to fit.
    """
    peaks = [max(mb for _, mb in one) for one in processes if one]
    halves = {"first": peaks[: len(peaks) // 2], "second": peaks[len(peaks) // 2 :]} if len(peaks) > 1 else {}
    return {
        "processes": len(peaks),
        "peak_mb": max(peaks, default=0.0),
        **{f"median_peak_mb_{name}_half": round(median(half), 1) for name, half in halves.items()},
        **_slope([[sample for sample in one if sample[0] >= one[0][0] + WARM_S] for one in processes if one]),
    }


def _slope(processes: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    fitted = [one for one in processes if len(one) >= 2]
    above = below = 0.0
    for one in fitted:
        mean_time, mean_mb = (sum(sample[index] for sample in one) / len(one) for index in (0, 1))
        above += sum((time - mean_time) * (mb - mean_mb) for time, mb in one)
        below += sum((time - mean_time) ** 2 for time, _ in one)
    enough = sum(map(len, fitted)) >= ENOUGH_SAMPLES and below
    minutes = sum(one[-1][0] - one[0][0] for one in fitted) / 60
    return {"mb_per_minute": round(60 * above / below, 3) if enough else None, "minutes_fitted": round(minutes, 1)}
