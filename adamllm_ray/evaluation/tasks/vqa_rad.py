"""VQA-RAD: questions that clinicians asked about radiology images, test split.

The paper's biomedical training data contains other rows of it: partly seen.
"""

from adamllm_ray.evaluation.tasks.layout import BIOMEDICINE, Benchmark, open_or_closed

TASK = Benchmark(
    name="vqa_rad",
    title="VQA-RAD",
    release=BIOMEDICINE,
    folders=("vqa_rad", "VQA_RAD"),
    rows={"open": 179, "closed": 272},
    link="https://osf.io/89kps/",
    licence="CC0 1.0",
    read=open_or_closed,
)
