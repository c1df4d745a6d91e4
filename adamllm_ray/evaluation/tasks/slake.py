"""SLAKE: questions about CT, MRI and X-ray images, the English ones of the test split."""

from adamllm_ray.evaluation.tasks.layout import BIOMEDICINE, Benchmark, open_or_closed

TASK = Benchmark(
    name="slake",
    title="SLAKE",
    release=BIOMEDICINE,
    folders=("SLAKE",),
    rows={"open": 645, "closed": 416},
    link="https://www.med-vqa.com/slake/",
    licence="CC BY 4.0",
    read=open_or_closed,
)
