from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.synthesis.engine_check import PROMPT


@pytest.fixture(scope="module")
def adapter(tiny_judge: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A random LoRA adapter, and the tokens that transformers gives for the model with the adapter merged in."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_judge), lora)
    model.save_pretrained(folder)
    merged = model.merge_and_unload().eval()
    ids = merged.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    return folder, ids[0].tolist()[len(PROMPT) :]


def answers_of(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.synthesis.engine_check", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]  # vLLM's processes print too
    assert lines, result.stdout[-2000:] + result.stderr[-2000:]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("core", ["in-process", "served"])
def test_adapter_and_sampling_of_each_request(tiny_judge: Path, adapter: tuple[Path, list[int]], core: str) -> None:
    """With a LoRA adapter an engine writes what transformers writes with the adapter merged in.

    In-process is what replicas without GPUs use, served (AsyncLLM) what those with GPUs use; both on the CPU build.
    """
    folder, merged = adapter
    found = answers_of(tiny_judge, folder, core)
    answers = found["answers"]
    assert [answers[f"greedy-{number}"] for number in range(7)] == [merged] * 7
    assert answers["sampled-0"] == answers["sampled-2"] != answers["sampled-1"]
    assert answers["short"] == merged[:2]
    assert found["mean_logprobs"]["short"] is None
    assert all(value < 0 for name, value in found["mean_logprobs"].items() if name != "short")
    assert found["prompt_tokens"] == [len(PROMPT), 60]
    assert found["errors"].keys() == {"long", "unknown"}
    assert found["errors"]["long"][1]
    assert not found["errors"]["unknown"][1]
    assert all(len(answers[f"wide-{number}"]) == 12 for number in range(4))  # sampled, and more than a step's tokens
    expected = {"rows": 17, "errors": 2, "in_flight": 0, "generated_tokens": 14 * 12 + 2}
    assert expected.items() <= found["totals"].items()


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
