"""What the command line prints when a run is done: the score table and the row accounting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from adamllm_ray.data.run import Manifest
from adamllm_ray.report.collect import duration, funnel, keep_rate, points


def score_table(extra: Mapping[str, Any]) -> Table:
    """Accuracy in percent with 95 % intervals per question type, from the evaluate manifest's ``extra``."""
    scores = extra["scores"]
    table = Table(
        title="Accuracy on the same questions, % [95 % interval]",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,  # the box puts a space between columns
    )
    table.add_column("question type")  # the one column that may wrap, so that the rest fits into 80 characters
    baselines = scores["baselines"]
    titles = [_baseline_title(name, baselines[name]) for name in baselines]
    for title in ("n", "base", "adapted", "difference", *titles):
        table.add_column(title, justify="right", no_wrap=True)
    for name in scores["types"]:
        table.add_row(*_cells(Text(name.replace("_", " ")), scores, lambda item, name=name: item["types"][name]))
    if any(item["fitted_on"] == "test" for item in baselines.values()):
        table.caption = "* the most common answers of the test set itself"
    if scores["types"]:
        table.add_section()
        table.add_row(*_cells(Text("all questions", "bold"), scores, lambda item: item["overall"]))
        table.add_row(*_cells(Text("mean over types"), scores, lambda item: item["average"]))
    return table


def _baseline_title(name: str, item: Mapping[str, Any]) -> str:
    return f"{name}*" if item["fitted_on"] == "test" else name


def _cells(label: Text, scores: Mapping[str, Any], pick: Any) -> list[Any]:
    base, adapted = (pick(scores["models"][name]) for name in ("base", "adapted"))
    gain = pick(scores["difference"])
    style = "green" if gain["lo"] > 0 else "red" if gain["hi"] < 0 else ""
    interval = f"{points(gain['value'])} [{points(gain['lo'], 0)},{points(gain['hi'], 0)}]"
    shares = [f"{100 * pick(item):.1f}" for item in scores["baselines"].values()]
    return [label, str(base["n"]), _accuracy(base), _accuracy(adapted), Text(interval, style), *shares]


def _accuracy(cell: Mapping[str, Any]) -> Text:
    return Text(f"{100 * cell['accuracy']:.1f} [{100 * cell['lo']:.0f},{100 * cell['hi']:.0f}]")


def funnel_lines(manifests: Mapping[str, Manifest]) -> list[str]:
    """Plain lines: rows per step, keep rate, rows in = rows accounted for and seconds, per stage that has run."""
    steps = funnel(manifests)
    lines = [" -> ".join(f"{step.label} {step.rows}" for step in steps)] if steps else []
    if (rate := keep_rate(manifests)) is not None:
        lines.append(f"keep rate: {100 * rate:.1f} % of the tasks that the judge saw")
    for name, manifest in manifests.items():
        accounted = manifest.kept + manifest.rejected + manifest.failed
        parts = f"{manifest.kept} kept + {manifest.rejected} rejected + {manifest.failed} failed"
        sign = "=" if accounted == manifest.rows_in else "IS NOT"
        lines.append(f"{name}: {manifest.rows_in} rows in {sign} {parts}, {duration(manifest.seconds)}")
    return lines
