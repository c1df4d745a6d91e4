"""Checkpoint -> scores with intervals.

::

    tasks/        where questions come from: published benchmarks, your own tables, the pocket test set
    metrics.py    one prediction -> right or wrong, and could it be read at all
    intervals.py  scores -> 95 % intervals, the paired difference, an exact p value
    baselines.py  what one gets without a model: the majority answer, a linear model on mean colour
    scores.py     all of it together: per column and task, under both kinds of metric
    fallback.py   transformers in the place of vLLM
    runner.py     base and adapted model on the same questions
"""
