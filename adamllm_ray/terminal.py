"""What `adamllm` prints on the terminal. Results go to standard output, progress and errors elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from adamllm_ray.config import RunConfig
from adamllm_ray.stages import planned

if TYPE_CHECKING:
    from adamllm_ray.data.manifest import Manifest
    from adamllm_ray.data.run import RunFolder
    from adamllm_ray.pocket.rehearsal import Rehearsed
    from adamllm_ray.synthesis.plan import Plan
    from adamllm_ray.synthesis.watch import Look

console = Console()
BLOCKS_READ = 400  # whose verdicts are counted for one look at a running synthesis; of more, a sample


def print_done(name: str, manifest: Manifest, seconds: float) -> None:
    """One line: the stage is done, and every row is accounted for."""
    accounted = (
        f"{manifest.rows_in} rows in = {manifest.kept} kept + {manifest.rejected} rejected + {manifest.failed} failed"
    )
    line = f"[green]✓[/green] [bold]{name:<11}[/bold] {accounted}  [dim]{seconds:.0f} s[/dim]"
    console.print(line, highlight=False, soft_wrap=True)


def print_rehearsed(trainings: Sequence[Rehearsed]) -> None:
    """What a dry run went through."""
    for one in trainings:
        parts = ", ".join(part for part, count in one.trainable.items() if count)
        loss = "" if one.loss is None else f", loss {one.loss:.2f}"
        console.print(
            f"[green]✓[/green] [bold]{one.name}[/bold] on a tiny {one.architecture}: trains {parts}; first batch: "
            f"{one.tokens} tokens, {one.labels} with loss{loss}",
            highlight=False,
            soft_wrap=True,
        )
    console.print("dry run: the configuration can be built; nothing was written", highlight=False)


def print_summary(config: RunConfig, folder: RunFolder, manifests: dict[str, Manifest]) -> None:
    """The end of a whole run: scores, funnel, where model and report are."""
    from adamllm_ray.quality.measure import judge_data
    from adamllm_ray.report.build import build_report
    from adamllm_ray.report.summary import contamination_lines, funnel_lines

    if "synthesize" not in manifests:  # a synthesizer was tuned, or another run has made the tasks
        console.print(f"\nmodel:  {manifests['train'].extra['model']}", soft_wrap=True, highlight=False)
        return
    _, leaked = judge_data(config, folder)
    page = build_report(config, folder)
    console.print()
    if "evaluate" in manifests:
        print_scores(folder)
    for line in funnel_lines(manifests):
        console.print(line, highlight=False)
    for line in contamination_lines(leaked):
        console.print(line, highlight=False)
    for line in _pocket_figures(config):
        console.print(line, highlight=False)
    console.print(f"\nmodel:  {manifests['train'].extra['model']}\nreport: {page}", soft_wrap=True, highlight=False)


def _pocket_figures(config: RunConfig) -> list[str]:
    """What the shipped models could do when they were built, for those of them that this run used."""
    from adamllm_ray.models.checkpoint import POCKET, resolve_model

    used = {role: spec for role, spec in config.models if role != "adapted" and spec.startswith(POCKET)}
    if not used:
        return []
    figures = json.loads((Path(resolve_model(next(iter(used.values())))).parent / "figures.json").read_text())
    base, synthesizer, judge = figures["base"], figures["synthesizer"], figures["judge"]
    lines = {
        "base": f"{100 * base['accuracy']:.0f} % of {base['questions']} held-out general questions",
        "synthesizer": f"{100 * synthesizer['parsed']:.0f} % of its responses for {synthesizer['pairs']} chips parse, "
        f"{100 * synthesizer['right']:.0f} % are right in both answers",
        "judge": f"{100 * judge['yes_no_accuracy']:.0f} % of {judge['cases']} Yes-or-No cases in the domain's words",
    }
    return ["shipped models, as built:", *(f"  {role:<12}{lines[role]}" for role in used)]


def print_scores(folder: RunFolder) -> None:
    """The score tables of a finished evaluation."""
    from adamllm_ray.report.modes import mode_tables
    from adamllm_ray.report.summary import score_table

    manifest = folder.stage("evaluate").manifest()
    if manifest is not None:
        console.print(score_table(manifest.extra))
        for item in mode_tables(manifest.extra["scores"]):
            console.print(item, highlight=False, soft_wrap=isinstance(item, str))


def print_quality(profile: dict[str, Any], contamination: dict[str, Any] | None) -> None:
    """What is known of the data, in a few lines."""
    from adamllm_ray.report.summary import contamination_lines, quality_lines

    for line in [*quality_lines(profile), *contamination_lines(contamination)]:
        console.print(line, highlight=False, soft_wrap=True)


def print_status(settings: RunConfig, folder: RunFolder) -> bool:
    """Print the stages; True when the run is finished."""
    table = Table(title=f"{settings.run.name} in {folder.uri}", title_justify="left")
    for column in ("stage", "state", "rows in", "kept", "rejected", "failed", "seconds"):
        table.add_column(column, justify="left" if column in ("stage", "state") else "right")
    manifests = {stage.name: folder.stage(stage.name).manifest() for stage in planned(settings)}
    started = [name for name in manifests if folder.read(f"{name}/fingerprint.json") is not None]
    for name, manifest in manifests.items():
        if manifest is None:
            table.add_row(name, "[yellow]started[/yellow]" if name in started else "[dim]not started[/dim]")
        else:
            counts = (manifest.rows_in, manifest.kept, manifest.rejected, manifest.failed)
            table.add_row(name, "[green]finished[/green]", *map(str, counts), f"{manifest.seconds:.0f}")
    console.print(table)
    ingested = manifests.get("ingest")
    if ingested is not None and "synthesize" in started and manifests["synthesize"] is None:
        from adamllm_ray.synthesis.watch import Watch

        for line in progress_lines(Watch(folder.stage("synthesize")).look(BLOCKS_READ), ingested.rows_in):
            console.print(f"synthesize: {line}", highlight=False, soft_wrap=True)
    return None not in manifests.values()


def progress_lines(seen: Look, total: int) -> list[str]:
    """A look at a running synthesis in one or two lines."""
    from adamllm_ray.report.collect import duration

    parts = [f"{seen.rows} of {total} rows ({seen.rows / max(1, total):.1%})"]
    left = seen.seconds_left(total)
    if seen.rate is not None and left is not None:
        parts += [f"{seen.rate:.3g} rows/s", f"{duration(left)} left"]
    if seen.newest is not None:
        parts.append(f"last block {duration(max(0.0, time.time() - seen.newest))} ago")
    return [", ".join(parts), *([seen.outcome()] if seen.verdicts else [])]


def print_plan(plan: Plan) -> None:
    """What the probe measured, and what follows."""
    from adamllm_ray.report.summary import plan_lines, plan_table

    for line in plan_lines(plan):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(plan_table(plan))
