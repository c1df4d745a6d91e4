"""What a process that loads models does without."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from adamllm_ray.models.lean import lean_transformers
lean_transformers()
from transformers.generation import candidate_generator  # what takes it in
print("sklearn" in sys.modules)
lean_transformers()
import sklearn.metrics
lean_transformers()
print("sklearn" in sys.modules)
"""


def test_transformers_does_without_scikit_learn_and_who_wants_it_has_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True"], done.stderr[-2000:]
