"""NWPU-Captions: a detailed caption, in one sentence, for an aerial image.

The paper's remote-sensing training data contains other rows of it: partly seen; it prints the number of all images.
"""

from adamllm_ray.evaluation.tasks.layout import REMOTE_SENSING, Benchmark, sentences

TASK = Benchmark(
    name="nwpu_captions",
    title="NWPU-Captions",
    release=REMOTE_SENSING,
    folders=("NWPU_Captions", "NWPU-Captions", "nwpu_captions", "NWPU"),
    rows={"": 31500},
    link="https://github.com/HaiyanHuang98/NWPU-Captions",
    licence="not stated",
    read=sentences,
)
