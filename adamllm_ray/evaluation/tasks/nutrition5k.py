"""Nutrition5K: which ingredients a dish is made of.

The release keeps its 555 ingredient names beside the rows.
"""

from adamllm_ray.evaluation.tasks.layout import FOOD, Benchmark, Released, listed

TASK = Benchmark(
    name="nutrition5k",
    title="Nutrition5K",
    release=FOOD,
    folders=("nutrition50k", "nutrition5k", "Nutrition5K"),
    rows={"": 507},
    link="https://github.com/google-research-datasets/Nutrition5k",
    licence="CC BY 4.0",
    read=listed("names_recall"),
    names=Released("nutrition5k_ingredients.py", lists=True),
    max_new_tokens=256,
)
