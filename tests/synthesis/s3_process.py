"""A driver on an S3 run folder, for test_s3.py; the fake engine (fakes.py) under a real Ray.

python -m tests.synthesis.s3_process s3://BUCKET/RUN VLM JUDGE LOG SECONDS_PER_ROW
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(output: str, vlm: str, judge: str, log: str, seconds: str) -> None:
    from adamllm_ray.data.run import RunFolder
    from adamllm_ray.ray_runtime import ray_session
    from adamllm_ray.synthesis.pipeline import synthesize
    from tests.synthesis.fakes import FakeMaker, config_for

    run = RunFolder(output)
    config = config_for(Path("unused"), Path(vlm), Path(judge))
    with run.lock(), ray_session():
        manifest = synthesize(config, run, engine_maker=FakeMaker(log, float(seconds)))
    print(json.dumps(manifest.verdicts))


if __name__ == "__main__":
    main(*sys.argv[1:])
