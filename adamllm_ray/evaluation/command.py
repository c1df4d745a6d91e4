"""`adamllm compare RUN_A RUN_B`: arguments in, table or JSON out. What it does is in ``compare.py``.

Imported by the command line at its start, so nothing heavy is imported up here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from adamllm_ray.errors import ConfigError, foreign
from adamllm_ray.terminal import console

if TYPE_CHECKING:
    from adamllm_ray.evaluation.compare import Arm, Comparison, Line
    from adamllm_ray.evaluation.intervals import Difference, Interval


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run folder, local or s3://.", show_default=False)],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run held against it.", show_default=False)],
    more_a: Annotated[
        list[str] | None, typer.Option("--a", metavar="RUN", help="Another run (seed) of side A. Repeatable.")
    ] = None,
    more_b: Annotated[
        list[str] | None, typer.Option("--b", metavar="RUN", help="Another run (seed) of side B. Repeatable.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME[,NAME]", help="Which model of each run; two names: A's and B's.")
    ] = "adapted",
    metrics: Annotated[str, typer.Option("--metrics", metavar="MODE", help="'strict', or 'paper'.")] = "strict",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Tell whether the model of one finished run is better than another's, by how much, and at what certainty.

    Only questions that every run was asked count. The difference is B - A, with its 95 % interval and p value. It warns
    of runs that were not asked in the same way (token limit, backend, split).

    Examples:

      adamllm compare runs/ratio-30 runs/ratio-60

      adamllm compare runs/x runs/x --model base,adapted

      adamllm compare s3://bucket/x-seed-1 s3://bucket/y-seed-1 --a s3://bucket/x-seed-2 --b s3://bucket/y-seed-2
    """
    from adamllm_ray.evaluation.compare import Arm
    from adamllm_ray.evaluation.compare import compare as held_against
    from adamllm_ray.evaluation.metrics import mode_named

    names = [name.strip() for name in model.split(",")]
    if len(names) > 2 or not all(names):
        raise ConfigError(f"--model {model!r}: give one name, or two with a comma between them, e.g. base,adapted")
    a = Arm((run_a, *(more_a or ())), names[0])
    b = Arm((run_b, *(more_b or ())), names[-1])
    found = held_against(a, b, mode_named(metrics))
    if as_json:
        typer.echo(found.to_json())
    else:
        _print(found)


def _print(found: Comparison) -> None:
    from adamllm_ray.evaluation.compare import left_out

    arms = (("A", found.a, found.run_means[0]), ("B", found.b, found.run_means[1]))
    for line in (_arm_line(*arm) for arm in arms):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for line in (*found.protocols, *(f"warning: {one}" for one in found.warnings)):
        console.print(
            line, style="yellow" if line.startswith("warning") else None, highlight=False, soft_wrap=True, markup=False
        )
    console.print(_table(found))
    console.print(_modes_table(found))
    for line in (*left_out(found), found.groups_verdict, found.verdict):
        if line:
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def _arm_line(name: str, arm: Arm, means: list[float]) -> str:
    line = f"{name}: the {foreign(arm.model)} model of {', '.join(map(foreign, arm.runs))}"
    if len(means) == 1:
        return line
    apart = ", ".join(f"{100 * mean:.1f}" for mean in means)
    return f"{line}; {len(means)} runs pooled by question, alone they have {apart} %"


def _table(found: Comparison) -> Table:
    title = f"{found.metrics.capitalize()} scores on the same questions, % [95 % interval]; ?: answers not readable"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in ("task", "type"):
        table.add_column(column)
    for column in ("n", "A", "?", "B", "?", "B - A", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in found.lines:
        table.add_row(*_cells(line))
    table.add_section()
    for line in (found.overall, found.average):
        table.add_row(*_cells(line))
    if found.general:
        table.add_section()
        for line in found.general:
            table.add_row(*_cells(line, " (general)"))
    return table


def _modes_table(found: Comparison) -> Table:
    title = "Mean score under both kinds of metric, %; ?: answers of A / of B that were not readable"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for column in ("task", "type"):
        table.add_column(column)
    for column in ("n", "strict: A", "B", "B - A", "?", "paper: A", "B", "B - A", "?"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in found.modes:
        cells = [foreign(line.task, 50), foreign(line.type, 40), str(line.n)]
        for mode in ("strict", "paper"):
            (a, b), (c, d) = line.means[mode], line.unparsable[mode]
            cells += [f"{100 * a:.1f}", f"{100 * b:.1f}", f"{100 * (b - a):+.1f}", f"{c:.3g}/{d:.3g}"]
        table.add_row(*map(Text, cells))
    return table


def _cells(line: Line, beside: str = "") -> list[Text]:
    from adamllm_ray.evaluation.intervals import ALPHA

    (a, b), gain = line.unparsable, line.difference
    style = ("green" if gain.value > 0 else "red") if gain.p < ALPHA else ""
    p = "<0.001" if gain.p < 0.001 else f"{gain.p:.3f}"
    names = (foreign(line.task, 40) + beside, foreign(line.type, 40), str(line.n))
    sides = (_percent(line.a), f"{a:.3g}", _percent(line.b), f"{b:.3g}")
    return [*map(Text, (*names, *sides)), Text(_percent(gain, "+"), style), Text(p)]


def _percent(found: Interval | Difference, sign: str = "") -> str:
    return f"{100 * found.value:{sign}.1f} [{100 * found.lo:{sign}.0f},{100 * found.hi:{sign}.0f}]"
