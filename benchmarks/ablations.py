"""The method's parts one by one, on the pocket domain: which of the paper's orderings hold at two million parameters.

    python -m benchmarks.ablations [CONFIG]     five minutes a training (jobs/configs/ablations/pocket.yaml)

Runs `adamllm ablate` and prints, for every arm, the mean over types with its interval, the paired difference to the
default, and how far the seeds lie apart. A difference whose interval holds 0 is none. Resumable, as `ablate` is.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from adamllm_ray.ablation.driver import ablate
from adamllm_ray.ablation.table import Row, Table
from adamllm_ray.config.ablation import load_ablation
from benchmarks.measure import ROOT, finish, say

CONFIG = ROOT / "jobs" / "configs" / "ablations" / "pocket.yaml"
# (better, worse) as in the paper's tables 4 and 5; for small models its single stage does not always win (table 15)
ORDERINGS = (
    ("single_stage", "base"),
    ("single_stage", "caption_only"),
    ("single_stage", "synthetic_only"),
    ("single_stage", "no_filter"),
    ("single_stage", "two_stage"),
)


def main() -> None:
    started = time.monotonic()
    ablation = load_ablation(sys.argv[1] if len(sys.argv) > 1 else CONFIG)
    table = ablate(ablation)
    say(table.to_markdown())
    average = {row.arm: row for row in table.rows if row.type == "mean over types"}
    metrics: dict[str, Any] = {"seeds": len(ablation.seeds), "minutes": (time.monotonic() - started) / 60}
    metrics["arms"] = {arm: _told(row, table) for arm, row in average.items()}
    metrics["orderings"] = {f"{a} > {b}": _holds(average[b]) for a, b in ORDERINGS if b in average}
    finish("ablations", metrics)


def _told(row: Row, table: Table) -> dict[str, Any]:
    percent = [round(100 * value, 1) for value in (row.score.value, row.score.lo, row.score.hi)]
    found: dict[str, Any] = {"n": row.n, "score": percent, "seeds": [round(100 * m, 1) for m in table.seeds[row.arm]]}
    if row.difference is not None:
        gain = row.difference
        found["difference"] = [round(100 * value, 1) for value in (gain.value, gain.lo, gain.hi)]
    return found


def _holds(row: Row) -> str:
    """Whether the default is better than this arm: yes, no (the other way round), or cannot be told."""
    if row.difference is None or row.difference.lo <= 0 <= row.difference.hi:
        return "cannot be told"
    return "yes" if row.difference.hi < 0 else "no, the other way round"


if __name__ == "__main__":
    main()
