"""Recipe1M: the recipe of a dish on a photo, that is, its name, ingredients and steps.

The paper's food training data contains other rows of it: partly seen.
"""

from adamllm_ray.evaluation.tasks.layout import FOOD, Benchmark, sentences

TASK = Benchmark(
    name="recipe1m",
    title="Recipe1M",
    release=FOOD,
    folders=("food_eval_multitask_v2", "Recipe1M"),
    rows={"": 1000},
    link="https://im2recipe.csail.mit.edu/",
    licence="by registration there",
    read=sentences,
)
