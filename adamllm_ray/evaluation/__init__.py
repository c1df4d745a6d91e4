"""Checkpoint -> scores with intervals.

::

    tasks/        where questions come from: published benchmarks, your own tables, the pocket test set
    metrics/      one prediction -> a score as published and a strict one, and could it be read at all
    intervals.py  scores -> 95 % intervals, paired differences with p values, a verdict in words
    compare.py    two finished runs on the same questions (command.py: `adamllm compare`)
    baselines.py  what one gets without a model: the majority answer, a linear model on mean colour
    scores.py     all of it together: per column and task, under both kinds of metric
    fallback.py   transformers in the place of vLLM
    runner.py     base and adapted model on the same questions
"""
