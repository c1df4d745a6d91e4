"""One table of all arms: score per task with its interval, and the paired difference to the default arm.

Seeds of an arm are pooled question by question, as `adamllm compare` does it; the runs are ordinary ones, so every line
can be looked into with that command.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from adamllm_ray.ablation.arms import Arm
from adamllm_ray.config.ablation import BASE, AblationConfig
from adamllm_ray.evaluation.compare import Arm as Side
from adamllm_ray.evaluation.compare import Line, compare
from adamllm_ray.evaluation.intervals import Difference, Interval
from adamllm_ray.evaluation.metrics import Mode


@dataclass(frozen=True, slots=True)
class Row:
    """One arm on one group of questions. Without a difference it is the default itself.

    Attributes:
        p: of the difference, after Holm over the groups of the arm; None for sums of groups.
    """

    arm: str
    task: str
    type: str
    n: int
    score: Interval
    difference: Difference | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """All rows, arm by arm; ``seeds`` holds the mean of each seed's run, to see how far they lie apart."""

    default: str
    metrics: Mode
    rows: list[Row]
    seeds: dict[str, list[float]]

    def to_json(self) -> str:
        """Everything, as one JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_markdown(self) -> str:
        """As a table, percentages."""
        head = ["arm", "task", "type", "n", "score [95 %]", f"minus {self.default} [95 %]", "p"]
        lines = [head, ["---"] * len(head), *(_cells(row) for row in self.rows)]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        apart = "; ".join(
            f"{arm}: " + ", ".join(f"{100 * mean:.1f}" for mean in means) for arm, means in self.seeds.items()
        )
        return f"{text}\n\n{self.metrics.capitalize()} scores, %; seeds pooled by question. Each seed alone: {apart}.\n"


def table_of(ablation: AblationConfig, arms: Sequence[Arm], metrics: Mode = "strict") -> Table:
    """The table of finished runs. Raises as `compare`, for example for a run that is not evaluated."""
    own = Side(_runs(ablation.default, ablation))
    rows: list[Row] = []
    seeds: dict[str, list[float]] = {}
    for arm in arms[1:] or arms:
        side = Side(own.runs, BASE) if arm.name == BASE else Side(_runs(arm.name, ablation))
        found = compare(own, side, metrics)
        lines = [*found.lines, found.overall, found.average]
        if not rows:
            rows += [Row(ablation.default, line.task, line.type, line.n, line.a) for line in lines]
            seeds[ablation.default] = found.run_means[0]
        if arm.name != ablation.default:
            rows += [_row(arm.name, line) for line in lines]
            seeds[arm.name] = found.run_means[1]
    return Table(ablation.default, metrics, rows, seeds)


def _runs(arm: str, ablation: AblationConfig) -> tuple[str, ...]:
    return tuple(f"{ablation.output}/arms/{arm}/seed-{seed}" for seed in ablation.seeds)


def _row(arm: str, line: Line) -> Row:
    return Row(arm, line.task, line.type, line.n, line.b, line.difference, line.adjusted)


def _cells(row: Row) -> list[str]:
    gain = "" if row.difference is None else _percent(row.difference, "+")
    p = "" if row.difference is None else f"{row.difference.p if row.p is None else row.p:.3f}"
    return [row.arm, row.task, row.type, str(row.n), _percent(row.score), gain, p]


def _percent(found: Interval | Difference, sign: str = "") -> str:
    return f"{100 * found.value:{sign}.1f} [{100 * found.lo:{sign}.1f}, {100 * found.hi:{sign}.1f}]"
