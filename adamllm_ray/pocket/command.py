"""`adamllm pocket`: making the laptop-size models, and seed files of their world.

Imported by the command line at its start, so nothing heavy is imported up here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from adamllm_ray.exits import resumable

pocket = typer.Typer(no_args_is_help=True, help="The laptop-size models and the satellite domain of the quickstart.")


@pocket.command("build")
def pocket_build(
    output: Annotated[Path, typer.Argument(help="Folder to build in; the models end up below it.")] = Path(
        "runs/pocket"
    ),
    install: Annotated[bool, typer.Option("--install", help="Replace the models that ship with the package.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights and of every example.")] = 0,
    train_only: Annotated[
        bool,
        typer.Option(
            "--train-only", help="Do not measure them, which needs vLLM: on a GPU machine, say. Measure later."
        ),
    ] = False,
) -> None:
    """Make the three pocket models again from nothing (about an hour on 2 cores). Resumable and deterministic.

    Example:  adamllm pocket build runs/pocket
    """
    from adamllm_ray.pocket.build import build, train

    if train_only and install:
        raise typer.BadParameter(
            "--train-only measures nothing, and what ships has its figures beside it: leave one out"
        )

    with resumable(None):
        _print_json(train(output, seed) if train_only else build(output, install=install, seed=seed))


@pocket.command("seed")
def pocket_seed(
    output: Annotated[Path, typer.Argument(help="Folder to write three JSON files and images/ to.")],
    images: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 2000,
) -> None:
    """Write seed files of the pocket world, for `adamllm seed`.

    `make quickstart FULL=1` tunes a synthesizer on 4,000 of them.

    Example:  adamllm pocket seed runs/seed --images 500
    """
    from adamllm_ray.pocket.seeds import write_seed

    _print_json(write_seed(output, images))


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2))
