from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_judge_on_vllm_agrees_with_transformers(tiny_judge: Path) -> None:
    """Probabilities of the three labels from the real replica, against the logits of the same model in transformers."""
    command = [sys.executable, "-m", "tests.synthesis.judge_check", str(tiny_judge)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["verdicts"][-1] == "prompt_too_long"
    assert found["verdicts"][:-1] == found["expected_verdicts"]
    for ours, theirs in zip(found["vllm"], found["transformers"], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)
