"""CLRS: which of 25 kinds of scene an aerial image shows.

The number of rows that the paper prints is that of the whole data set.
"""

from adamllm_ray.evaluation.tasks.layout import REMOTE_SENSING, Benchmark, category, labels

TASK = Benchmark(
    name="clrs",
    title="CLRS",
    release=REMOTE_SENSING,
    folders=("CLRS", "clrs"),
    rows={"": 15000},
    link="https://github.com/lehaifeng/CLRS",
    licence="not stated",
    read=category,
    names=labels,
)
