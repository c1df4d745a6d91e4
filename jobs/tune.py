"""A search over mixtures and other fields, as a Ray job.

    ray job submit --working-dir jobs -- python tune.py configs/my.yaml --set run.output=s3://bucket/run

Same arguments, output and exit codes as `adamllm tune`; the last line is a JSON object with counts or the error.
"""

from adamllm_ray.submission.driver import run_job

if __name__ == "__main__":
    run_job("tune")
