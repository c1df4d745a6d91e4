"""A redrive that kills itself at an exact point, for test_redrive.py.

    python -m tests.synthesis.redrive_process RUN VLM JUDGE LOG POINT

POINT: "asked" (the graph is done, nothing is merged), "merged" (one new file is written), "before" or "after" the
manifest is replaced, or "never". Uses the fake engine (fakes.py) under a real Ray.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(output: str, vlm: str, judge: str, log: str, point: str) -> None:
    from adamllm_ray.data.run import RunFolder, StageFolder
    from adamllm_ray.synthesis import redrive
    from tests.synthesis.fakes import FakeMaker, config_for

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), 9)

    def then_die(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> None:
            function(*arguments, **named)
            die()

        return call

    if point == "asked":
        redrive._swap = die  # type: ignore[assignment]
    if point == "merged":
        write = redrive.pq.write_table
        redrive.pq.write_table = lambda table, where, **named: (
            then_die(write)(table, where, **named) if "/redriven/" in str(where) else write(table, where, **named)
        )
    if point == "before":
        StageFolder.finish = die  # type: ignore[method-assign,assignment]
    if point == "after":
        StageFolder.finish = then_die(StageFolder.finish)  # type: ignore[method-assign]
    config = config_for(Path(output), Path(vlm), Path(judge))
    redrive.redrive(config, RunFolder(output), ["engine_error"], engine_maker=FakeMaker(log))


if __name__ == "__main__":
    main(*sys.argv[1:])
