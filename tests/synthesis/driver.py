"""A whole driver process for the kill tests.

    python -m tests.synthesis.driver RUN VLM JUDGE LOG RAYDIR SECONDS_PER_ROW [POISON]

Uses the fake engine (see fakes.py). Prints the manifest's verdicts as JSON, and nothing when it was killed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(output: str, vlm: str, judge: str, log: str, raydir: str, seconds: str, poison: str = "") -> None:
    import ray

    from adamllm_ray.data.run import RunFolder
    from adamllm_ray.ray_runtime import prepare_environment
    from adamllm_ray.synthesis.pipeline import synthesize
    from tests.synthesis.fakes import FakeMaker, config_for

    prepare_environment()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 << 20,
        logging_level="warning",
        _temp_dir=raydir,
    )
    maker = FakeMaker(log, float(seconds), poison)
    manifest = synthesize(config_for(Path(output), Path(vlm), Path(judge)), RunFolder(output), engine_maker=maker)
    ray.shutdown()
    print(json.dumps(manifest.verdicts))


if __name__ == "__main__":
    main(*sys.argv[1:])
