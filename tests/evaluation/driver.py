"""A whole driver process to be killed: the evaluate stage as `adamllm evaluate` runs it, on the fake engine.

    python -m tests.evaluation.driver SPEC.json

SPEC holds {"config": the configuration tree, "maker": FakeMaker's fields}. Prints the scores as JSON. Exit codes are
those of the command line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any]) -> None:
    """Run the stage once."""
    from adamllm_ray.config import parse_config
    from adamllm_ray.data.run import RunFolder
    from adamllm_ray.evaluation.runner import evaluate
    from adamllm_ray.exits import resumable
    from tests.synthesis.fakes import FakeMaker

    config = parse_config(spec["config"])
    run = RunFolder(config.run.output)
    with resumable(run), run.lock():
        manifest = evaluate(config, run, engine_maker=FakeMaker(**spec["maker"]))
    print(json.dumps(manifest.extra["scores"], sort_keys=True))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
