"""The terminal's second table: every column under both kinds of metric, with what has to be said beside a score.

    for item in mode_tables(scores): console.print(item)

Printed for every evaluation, also of one task: a figure says little without the kind of metric, protocol, split,
denominator and the number of answers that could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from adamllm_ray.report.collect import denominator

MODELS = ("base", "adapted")


def mode_tables(scores: Mapping[str, Any]) -> Iterator[Table | str]:
    """The table, then a line per task: denominator, split, protocol. Nothing where an earlier version scored."""
    tasks: Mapping[str, Mapping[str, Any]] = scores.get("tasks") or {}
    if not tasks:
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
    _rows(table, scores)
    if scores.get("general") and scores["general"]["types"]:
        table.add_row(Text("general, not domain:", "bold"))
        _rows(table, scores["general"])
    yield table
    for name, task in tasks.items():
        yield _line(name, task)


def _rows(table: Table, part: Mapping[str, Any]) -> None:
    """A row per column of the scores, and the two averages."""
    if not part["types"]:
        return
    for name in part["types"]:
        table.add_row(name.replace("_", " "), *_cells(part, ("types", name)))
    table.add_row(Text("all questions", "bold"), *_cells(part, ("overall",)))
    table.add_row("mean over columns", *_cells(part, ("average",)))
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
    printed = sum(task.get("paper_rows", {}).values())
    paper = f" (the paper prints {printed:,} rows)" if printed and printed != task["rows"] else ""
    title = f"{task.get('title', name)}{', general' if task['general'] else ''}"
    return f"{title}: {denominator(task)}{paper}; split: {task['split']}; {task['protocol']}"
