"""`adamllm tune`: arguments in, table or YAML out. What it does is in ``runner.py``.

Imported by the command line at its start, so nothing heavy is imported up here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from adamllm_ray.arguments import ConfigPath, Overrides, folder_of
from adamllm_ray.config import load_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.exits import resumable
from adamllm_ray.terminal import console, print_done

if TYPE_CHECKING:
    from adamllm_ray.data.manifest import Manifest

SHOWN = 12  # trials of the table


def tune(
    config: ConfigPath,
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Refuse to begin a new search: only continue one.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Print the best configuration of a finished search.")] = False,
    force_new: Annotated[
        bool, typer.Option("--force-new", help="Move a search made with other settings aside and start it again.")
    ] = False,
) -> dict[str, Any]:
    """Search for the best mixture, and for other fields: each trial trains, and is scored on validation questions.

    Needs a finished synthesis and the section `tuning`. After any interruption the same command continues, with or
    without --resume. `--best` prints what `adamllm run` takes for the full run.

    Examples:

      adamllm tune jobs/configs/tune.yaml

      adamllm tune my.yaml --best > best.yaml
    """
    from adamllm_ray.tuning import runner

    settings = load_config(config, set_ or [])
    folder = folder_of(settings)
    if best:
        typer.echo(runner.best_config(folder), nl=False)
        return {}
    if resume and (force_new or not runner.begun(folder)):
        raise ConfigError(f"--resume: {folder.uri} holds no search to continue; leave --resume out to begin one")
    with resumable(folder), folder.lock():
        manifest = runner.tune(settings, folder, force_new=force_new)
    print_done("tune", manifest, manifest.seconds)
    _print(manifest)
    return {"tune": manifest}


def _print(manifest: Manifest) -> None:
    found = manifest.extra
    console.print(_table(found))
    best, spent = found["best"], found["spent"]
    words = ", ".join(f"{name} {value}" for name, value in (best["weights"] | best["fields"]).items())
    console.print(f"best, by {best['from']}: {words}", highlight=False, soft_wrap=True)
    interval = f"[{100 * best['lo']:.1f}, {100 * best['hi']:.1f}]"
    console.print(
        f"score {100 * best['score']:.1f} {interval}, untrained {100 * found['base']:.1f}; "
        f"{spent['hours']:.2f} {spent['unit']}. The full run: adamllm tune CONFIG --best",
        highlight=False,
        soft_wrap=True,
    )


def _table(found: dict[str, Any]) -> Table:
    title = f"Trials by {found['metric']} ({found['mode']}) on the validation questions, %"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in (*found["columns"], "score"):
        table.add_column(column, justify="right")
    done = sorted((one for one in found["trials"] if one["verdict"] == "ok"), key=lambda one: -one["score"])
    for trial in done[:SHOWN]:
        values = (trial["weights"] | trial["fields"]).values()
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
        table.add_row(*cells, f"{100 * trial['score']:.1f}")
    return table
