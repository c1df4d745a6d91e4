"""One response to one image, what became of it, and which of a row's responses is its task.

By default a row has one attempt. With ``synthesis.candidates`` it has several, with ``synthesis.retry_temperature`` one
more when none of them parses, and with ``synthesis.tasks_per_image`` each task of a response is one. All are stored in
the ``attempts`` column; the columns of the row itself repeat the chosen one, and ``further`` has other kept ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from adamllm_ray.data.draws import draw_seed
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.synthesis.engine import SamplingSpec
from adamllm_ray.synthesis.prompts import same_question

Attempt = dict[str, Any]  # the fields of record.ATTEMPT

ROW_NAMES = {"verdict": "task_verdict", "detail": "task_detail"}  # the others have the same name in both
TASK_NAMES = ("instruction", "informative", "precise")
RETRIED = frozenset(
    {Verdict.RESPONSE_EMPTY, Verdict.RESPONSE_TRUNCATED, Verdict.RESPONSE_UNPARSABLE, Verdict.RESPONSE_REPEATS}
)


def request_id(row_id: str, number: int) -> str:
    """Name of attempt ``number`` at an engine: the row's own id for the first."""
    return row_id if number == 0 else f"{row_id}#{number}"


def sampling(base: SamplingSpec, temperature: float, run_seed: int, row_id: str, number: int) -> SamplingSpec:
    """How attempt ``number`` of a row is decoded. Its seed depends on (run seed, row id, number) and nothing else."""
    return replace(base, temperature=temperature, seed=draw_seed(run_seed, "attempt", row_id, number))


def choose(attempts: Sequence[Attempt]) -> int:
    """Index of the attempt that speaks for the row.

    The highest P(Yes) among the kept ones; with none kept, among the judged ones; with none judged, the first.
    The earlier attempt wins a tie.
    """
    if not attempts:
        raise ValueError("a row needs at least one attempt")
    return max(range(len(attempts)), key=lambda index: (*_rank(attempts[index]), -index))


def _rank(attempt: Attempt) -> tuple[bool, float]:
    yes = attempt.get("judge_yes")
    return attempt.get("verdict") == Verdict.KEPT, -1.0 if yes is None else float(yes)


def needs_retry(attempts: Sequence[Attempt]) -> bool:
    """Whether every response came and none of them could be read."""
    return all(attempt.get("verdict") in RETRIED for attempt in attempts)


def is_open(attempt: Attempt) -> bool:
    """Whether it holds a task that waits for the judge."""
    return attempt.get("verdict") is None


def row_columns(attempt: Attempt) -> dict[str, Any]:
    """The row's own columns, from the attempt that speaks for it."""
    skipped = ("temperature", "seed", "chosen")
    return {ROW_NAMES.get(name, name): value for name, value in attempt.items() if name not in skipped}


def spoken_for(attempts: Sequence[Attempt], tasks: int = 1) -> dict[str, Any]:
    """The row's columns: the chosen attempt's, all attempts with the chosen one marked, and up to ``tasks - 1`` more

    kept tasks that ask something else.
    """
    best = choose(attempts)
    marked = [attempt | {"chosen": index == best} for index, attempt in enumerate(attempts)]
    return row_columns(attempts[best]) | {"attempts": marked, "further": _further(attempts, best, tasks)}


def _further(attempts: Sequence[Attempt], best: int, tasks: int) -> list[dict[str, str]] | None:
    if tasks == 1:
        return None
    kept = [attempt for attempt in attempts if attempt.get("verdict") == Verdict.KEPT]
    asked = {same_question(attempts[best].get("instruction") or "")}
    found: list[dict[str, str]] = []
    for attempt in sorted(kept, key=_rank, reverse=True):  # stable: of equals, the earlier first
        question = same_question(attempt["instruction"])
        if question not in asked and len(found) < tasks - 1:
            asked.add(question)
            found.append({name: attempt[name] for name in TASK_NAMES})
    return found


def from_row(row: dict[str, Any]) -> Attempt:
    """The only attempt of a row whose ``attempts`` column is null."""
    return {name: row[name] for name in TASK_NAMES} | {"verdict": row["task_verdict"], "detail": row["task_detail"]}
