"""Checkpoint -> scores with intervals.

::

    tasks/        where questions come from: your own table, or the pocket test set
    metrics.py    one prediction -> right or wrong, and could it be read at all
    intervals.py  scores -> 95 % intervals, the paired difference, an exact p value
    baselines.py  what one gets without a model: the majority answer, a linear model on mean colour
    runner.py     base and adapted model on the same questions, in vLLM
"""
