"""Checkpoint -> scores with intervals.

::

    tasks/        where questions come from: your own table, or the pocket test set
    metrics/      one prediction -> a score as published and a strict one, and could it be read at all
    intervals.py  scores -> 95 % intervals, paired differences with p values, a verdict in words
    compare.py    two finished runs on the same questions (command.py: `adamllm compare`)
    baselines.py  what one gets without a model: the majority answer, a linear model on mean colour
    runner.py     base and adapted model on the same questions, in vLLM
"""
