from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from adamllm_ray.config import EngineSection
from adamllm_ray.errors import ConfigError, RowAccountingError
from adamllm_ray.synthesis.engine import Completion, Request, engine_arguments, match_completions

REQUESTS = [Request(str(number), [1]) for number in range(30)]


def test_completions_come_back_in_the_order_of_the_requests() -> None:
    shuffled = random.Random(0)
    for _ in range(1000):
        answers = [Completion(request.id, text=request.id) for request in REQUESTS]
        shuffled.shuffle(answers)
        assert [answer.text for answer in match_completions(REQUESTS, answers)] == [one.id for one in REQUESTS]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([str(number) for number in range(29)], "lost request 29"),
        ([str(number) for number in range(30)] + ["7"], "7 twice"),
        ([str(number) for number in range(30)] + ["x"], "x, which nobody asked"),
    ],
)
def test_missing_doubled_and_foreign_rows_are_named(ids: list[str], words: str) -> None:
    with pytest.raises(RowAccountingError, match=words):
        match_completions(REQUESTS, [Completion(name) for name in ids])


def test_two_requests_with_one_id_are_refused() -> None:
    with pytest.raises(RowAccountingError, match="same id"):
        match_completions([REQUESTS[0], REQUESTS[0]], [Completion("0")])


def test_guards_cannot_be_switched_off() -> None:
    arguments = engine_arguments("m", EngineSection(extra={"block_size": 32}), images=True, seed=3)
    assert arguments["trust_remote_code"] is False
    assert arguments["allowed_local_media_path"] == ""
    assert arguments["allowed_media_domains"] == []
    assert arguments["load_format"] == "safetensors"
    assert arguments["block_size"] == 32
    assert arguments["limit_mm_per_prompt"] == {"image": 1}
    with pytest.raises(ConfigError, match="trust_remote_code"):
        engine_arguments("m", EngineSection(extra={"trust_remote_code": True}), images=False, seed=0)


def test_gpu_replica_is_left_to_vllm() -> None:
    arguments = engine_arguments("m", EngineSection(gpus_per_replica=4), images=False, seed=0)
    assert arguments["tensor_parallel_size"] == 4
    assert arguments["dtype"] == "auto"
    assert "kv_cache_memory_bytes" not in arguments
    assert "distributed_executor_backend" not in arguments


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
