"""PathVQA: questions about pathology images from textbooks, test split."""

from adamllm_ray.evaluation.tasks.layout import BIOMEDICINE, Benchmark, open_or_closed

TASK = Benchmark(
    name="pathvqa",
    title="PathVQA",
    release=BIOMEDICINE,
    folders=("pathvqa", "PathVQA"),
    rows={"open": 3357, "closed": 3362},
    link="https://github.com/UCSD-AI4H/PathVQA",
    licence="MIT",
    read=open_or_closed,
)
