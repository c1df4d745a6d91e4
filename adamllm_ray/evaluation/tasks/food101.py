"""Food101: which of 101 dishes is on a photo. Labels are numbers; the release keeps their names beside the rows."""

from adamllm_ray.evaluation.tasks.layout import FOOD, Benchmark, Released, numbered

TASK = Benchmark(
    name="food101",
    title="Food101",
    release=FOOD,
    folders=("food101", "Food101"),
    rows={"": 25250},
    link="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    licence="for research; the photos are their owners'",
    read=numbered,
    names=Released("food101_name_to_label_map.json"),
    max_new_tokens=256,
)
