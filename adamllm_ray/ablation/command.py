"""`adamllm ablate`: arguments in, table out. Imported by the command line at its start, so nothing heavy up here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adamllm_ray.arguments import Overrides
from adamllm_ray.exits import resumable
from adamllm_ray.terminal import console, print_rehearsed


def ablate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="An ablation: a configuration and arms.")],
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and build each up to a batch.")] = False,
) -> None:
    """Run the arms of an ablation with several seeds, and hold each against the default on the same questions.

    Arms that train on the same tasks share them. The table goes to ablations.md and ablations.json in its output
    folder; the same command continues after any interruption.

    Examples:

      adamllm ablate jobs/configs/ablations/pocket.yaml --dry-run

      adamllm ablate my-ablation.yaml --set training.workers=8
    """
    from adamllm_ray.ablation.driver import ablate as run_all
    from adamllm_ray.ablation.driver import plan
    from adamllm_ray.config.ablation import load_ablation

    ablation = load_ablation(config)
    if dry_run:
        from adamllm_ray.pocket.rehearsal import rehearse

        for each in plan(ablation, set_ or []):
            console.print(each.run.output, highlight=False, soft_wrap=True)
            if each.run.seed == ablation.seeds[0] or each.run.upstream is None:
                print_rehearsed(rehearse(each))
        return
    with resumable(None):
        table = run_all(ablation, set_ or [])
    typer.echo(table.to_markdown())
