"""Ablations: the same run with one thing changed, and whether it matters.

    adamllm ablate jobs/configs/ablations/pocket.yaml

`arms` has the known ones and makes configurations of them, `driver` runs them, and `table` holds every arm against the
default on the same questions.
"""
