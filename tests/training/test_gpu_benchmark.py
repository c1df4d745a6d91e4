"""benchmarks/gpu/train_mfu.py runs on a CPU with torch, transformers and what they bring, nothing of ours beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALONE = """
import runpy, sys
for name in ("ray", "vllm", "deepspeed", "pydantic", "pyarrow", "boto3", "peft", "mistral_common"):
    sys.modules[name] = None  # an import of it raises ImportError
sys.argv = ["train_mfu.py", "--tiny", "--eager", "--steps", "2", "--part", sys.argv[1]]
runpy.run_path("benchmarks/gpu/train_mfu.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", ["qwen2_vl_2b", "llava_next_8b_lora"])
def test_tiny_mode_needs_torch_and_transformers_alone(part: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, part], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["engine"] == "PlainEngine"
    assert found["mfu"] > 0
    assert found["trainable"] < found["parameters"] or part == "qwen2_vl_2b"
