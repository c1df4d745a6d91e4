"""FloodNet: questions about aerial images after a hurricane: what is flooded, how many buildings.

The paper prints 11,000 rows; the released set has fewer.
"""

from adamllm_ray.evaluation.tasks.layout import REMOTE_SENSING, Benchmark, short_answer

TASK = Benchmark(
    name="floodnet",
    title="FloodNet",
    release=REMOTE_SENSING,
    folders=("FloodNet", "floodnet"),
    rows={"": 11000},
    link="https://github.com/BinaLab/FloodNet-Supervised_v1.0",
    licence="CDLA-Permissive 1.0",
    read=short_answer,
)
