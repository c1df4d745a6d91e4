"""UC Merced land use: which of 21 kinds of scene an aerial image shows.

The paper prints 21,000 rows; the data set has 2,100 images.
"""

from adamllm_ray.evaluation.tasks.layout import REMOTE_SENSING, Benchmark, category, labels

TASK = Benchmark(
    name="uc_merced",
    title="UC Merced",
    release=REMOTE_SENSING,
    folders=("UC_Merced", "uc_merced", "UCMerced"),
    rows={"": 21000},
    link="http://weegee.vision.ucmerced.edu/datasets/landuse.html",
    licence="images of the USGS, public domain",
    read=category,
    names=labels,
)
