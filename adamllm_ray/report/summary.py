"""What the command line prints: scores and row accounting of a run that is done, and the plan of one that is not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from adamllm_ray.data.manifest import Manifest
from adamllm_ray.report.collect import duration, funnel, graded, keep_rate, points, tone

if TYPE_CHECKING:
    from adamllm_ray.synthesis.plan import Plan
    from adamllm_ray.synthesis.sizing import Needs


def score_table(extra: Mapping[str, Any]) -> Table:
    """Scores in percent with 95 % intervals per question type, from the evaluate manifest's ``extra``."""
    scores = extra["scores"]
    table = Table(
        title=f"{'Mean score' if graded(scores) else 'Accuracy'} on the same questions, % [95 % interval]",
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
    general = scores.get("general")
    if general and general["types"]:
        table.add_section()
        table.add_row(*_cells(Text("general, mean"), general, lambda item: item["average"]))
    return table


def _baseline_title(name: str, item: Mapping[str, Any]) -> str:
    return f"{name}*" if item["fitted_on"] == "test" else name


def _cells(label: Text, scores: Mapping[str, Any], pick: Any) -> list[Any]:
    base, adapted = (pick(scores["models"][name]) for name in ("base", "adapted"))
    gain = pick(scores["difference"])
    style = {"good": "green", "bad": "red", "even": ""}[tone(gain)]
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


def quality_lines(profile: Mapping[str, Any]) -> list[str]:
    """What `adamllm quality` prints of the data."""
    lines = [f"tasks:    {profile['kept']:,} kept of {profile['rows']:,} rows"]
    if not profile["kept"]:
        return lines
    types = ", ".join(f"{row['type']} {100 * row['share']:.0f} %" for row in profile["types"][:6])
    lines.append(
        f"variety:  {profile['different_questions']:,} different questions; types {types} "
        f"({profile['type_entropy']:.2f} bits)"
    )
    words = ", ".join(f"{name} {row['mean']:.1f}" for name, row in profile["lengths"].items())
    lines.append(f"words:    {words} (means)")
    if calibration := profile["calibration"]:
        lines.append(
            f"judge:    Brier score {calibration['brier']:.3f} on {calibration['n']:,} labelled tasks "
            f"({calibration['brier_of_base_rate']:.3f} for the base rate), calibration error {calibration['error']:.3f}"
        )
    if agreement := profile["agreement"]:
        lines.append(
            f"rule:     agrees with the judge in {100 * agreement['agreement']:.1f} % of {agreement['n']:,} tasks "
            f"({agreement['judge_only']:,} kept against it, {agreement['rule_only']:,} rejected against it)"
        )
    return lines


def contamination_lines(found: Mapping[str, Any] | None) -> list[str]:
    """What repeats an evaluation set, in a line per set."""
    if found is None:
        return []
    lines = []
    for name, item in found["sets"].items():
        counts = item["counts"]
        image, near, question, similar, both = (
            f"{counts.get(kind, 0):,}" for kind in ("image", "near_image", "question", "near_question", "pair")
        )
        lines.append(
            f"in {name} too, of {found['rows']:,} training records: image {image}, nearly {near}; question {question}, "
            f"nearly {similar}; image and question {both}"
        )
    return lines


def plan_table(plan: Plan) -> Table:
    """What the run takes with the pools as configured (first row) and with more replicas."""
    table = Table(
        title=f"Synthesis of {plan.rows:,} rows", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0
    )
    table.add_column("synthesizers", justify="right")
    table.add_column("judges", justify="right")
    for title in ("rows/s", "time", "done, if started now", f"{plan.unit}-hours", "cost"):
        table.add_column(title, justify="right", no_wrap=True)
    for size in plan.sizes:
        done = datetime.now().astimezone() + timedelta(hours=size.hours)
        table.add_row(
            str(size.synthesizers),
            str(size.judges),
            f"{size.rows_per_second:.3g}",
            duration(3600 * size.hours),
            f"{done:%Y-%m-%d %H:%M}",
            f"{size.unit_hours:.2f}",
            "-" if size.cost is None else f"{size.cost:,.2f}",
        )
    return table


def plan_lines(plan: Plan) -> list[str]:
    """What the probe measured, in plain lines."""
    probe, keep = plan.probe, plan.keep
    slower = "synthesizer" if probe.synthesizer_seconds >= probe.judge_seconds else "judge"
    verdicts = ", ".join(f"{name} {count}" for name, count in sorted(probe.verdicts.items(), key=lambda item: -item[1]))
    judge = f"{1 / probe.judge_seconds:.3g} rows/s" if probe.judge_seconds else "no task to judge"
    return [
        f"probe:   {probe.rows} rows: {verdicts}",
        f"speed:   one synthesizer {1 / probe.synthesizer_seconds:.3g} rows/s ({probe.tokens:.0f} tokens each), "
        f"one judge {judge}; start-up {duration(probe.start_seconds)}, counted once",
        f"kept:    {100 * keep.value:.0f} % of the rows, 95 % interval {100 * keep.lo:.0f} to {100 * keep.hi:.0f} %: "
        f"{round(keep.lo * plan.rows):,} to {round(keep.hi * plan.rows):,} tasks",
        f"output:  {plan.output_bytes / 1e9:.3g} GB",
        f"with one replica of each, the {slower} is the slower step",
    ]


def size_lines(needs: Needs) -> list[str]:
    """What `adamllm size` prints."""
    gib = 1 << 30
    cost = "" if needs.cost is None else f", cost {needs.cost:,.0f}"
    return [
        f"pools:   synthesis.engine.replicas={needs.synthesizers} judge.engine.replicas={needs.judges}: "
        f"{needs.gpus} GPUs on {needs.nodes} nodes",
        f"time:    {duration(3600 * needs.hours)}, {needs.gpu_hours:,.0f} GPU-hours ({needs.goodput:.0%} of them at "
        f"work){cost}",
        f"node:    {needs.cpus} CPUs, object store {needs.object_store_bytes / gib:.0f} GiB, /dev/shm "
        f"{needs.shm_bytes / gib:.0f} GiB, disk {needs.disk_bytes / gib:.0f} GiB and the models",
        f"bucket:  {needs.bucket_bytes / 1e9:,.0f} GB for the run folder",
        *(f"note:    {note}" for note in needs.notes),
    ]
