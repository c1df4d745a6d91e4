"""FoodSeg103: which ingredients are on a photo. Labels are numbers; the release keeps their names beside the rows.

Background (0) and "other ingredients" (103) do not count.
"""

from adamllm_ray.evaluation.tasks.layout import FOOD, Benchmark, Released, listed

NOT_FOOD = ("background", "other ingredients")

TASK = Benchmark(
    name="foodseg103",
    title="FoodSeg103",
    release=FOOD,
    folders=("foodseg103", "FoodSeg103"),
    rows={"": 2135},
    link="https://xiongweiwu.github.io/foodseg103.html",
    licence="Apache 2.0 (annotations)",
    read=listed("names_f1", NOT_FOOD),
    names=Released("foodSeg103_id2label.json", lists=True),
    max_new_tokens=256,
)
