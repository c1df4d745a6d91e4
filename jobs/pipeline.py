"""The whole run as a Ray job.

ray job submit --working-dir . -- python jobs/pipeline.py jobs/configs/quickstart.yaml --set run.output=s3://bucket/run

Same arguments, output and exit codes as `adamllm run`.
"""

import sys

from adamllm_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
