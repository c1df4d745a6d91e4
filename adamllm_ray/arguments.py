"""Arguments that most verbs of the command line take, and the folder that they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamllm_ray.config import RunConfig

if TYPE_CHECKING:
    from adamllm_ray.data.run import RunFolder

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A run configuration in YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. --set training.epochs=2. Repeatable."),
]


def folder_of(config: RunConfig) -> RunFolder:
    """The run folder of a configuration. Imports what it needs: listing the verbs costs nothing."""
    from adamllm_ray.data.run import RunFolder

    return RunFolder.of(config.run)
