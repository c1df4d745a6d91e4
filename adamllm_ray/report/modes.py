"""The terminal's second table: every column under both kinds of metric, with what has to be said beside a score.

    for item in mode_tables(scores): console.print(item)

Printed where there is more to say than the first table does: several tasks, a published benchmark, or general ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

MODELS = ("base", "adapted")


def mode_tables(scores: Mapping[str, Any]) -> Iterator[Table | str]:
    """The table, then a line per task: rows, denominator, split, protocol. Nothing for a single task of one's own."""
    tasks: Mapping[str, Mapping[str, Any]] = scores.get("tasks") or {}
    if len(tasks) < 2 and not any("paper_rows" in task for task in tasks.values()):
        return
    table = Table(
        title="Mean score under both kinds of metric, %",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    table.add_column("column")
    for title in ("n", "strict: base", "adapted", "unread", "paper: base", "adapted", "unread"):
        table.add_column(title, justify="right")
    _rows(table, scores, "")
    if scores.get("general"):
        _rows(table, scores["general"], "general, not domain: ")
    yield table
    for name, task in tasks.items():
        yield _line(name, task)


def _rows(table: Table, part: Mapping[str, Any], prefix: str) -> None:
    """A row per column of the scores, and the two averages."""
    if not part["types"]:
        return
    for name in part["types"]:
        table.add_row(f"{prefix}{name.replace('_', ' ')}", *_cells(part, ("types", name)))
    table.add_row(Text(f"{prefix}all questions", "bold"), *_cells(part, ("overall",)))
    table.add_row(f"{prefix}mean over columns", *_cells(part, ("average",)))
    table.add_section()


def _cells(part: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    cells: list[str] = []
    for mode in (part, part["paper"]):
        base, adapted = (_at(mode["models"][name], path) for name in MODELS)
        cells += [] if cells else [str(base["n"])]
        cells += [f"{100 * base['accuracy']:.1f}", f"{100 * adapted['accuracy']:.1f}"]
        cells.append(f"{base['unparsable']}/{adapted['unparsable']}")
    return cells


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _line(name: str, task: Mapping[str, Any]) -> str:
    lost = ", ".join(f"{verdict} {count}" for verdict, count in task["verdicts"].items())
    unusable = f", {task['unusable']} unusable ({lost})" if task["unusable"] else ""
    printed = sum(task.get("paper_rows", {}).values())
    paper = f"; the paper prints {printed:,} rows" if printed and printed != task["rows"] else ""
    scored = f"{task['rows']:,} rows, {task['n']:,} scored{unusable}{paper}"
    return f"{task.get('title', name)}: {scored}; split: {task['split']}; {task['protocol']}"
