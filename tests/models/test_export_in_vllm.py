"""An exported model means the same to vLLM as to transformers: greedy tokens of 20 prompts with images are equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.models.checkpoint import load_vlm, resolve_model
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import IGNORE, Example
from tests.training.conftest import picture

PROMPTS, TOKENS = 20, 12


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["random", "trained"])
def test_greedy_tokens_are_equal(weights: str, tiny_vlm: Path, tmp_path: Path) -> None:
    import torch

    folder = tiny_vlm if weights == "random" else Path(resolve_model("pocket:base"))
    model, processor = load_vlm(folder, "float32")
    chat, collator = ChatFormat(processor.tokenizer), Collator(processor, 512)
    asked = []
    for number in range(PROMPTS):
        ids = chat.prompt([Turn("user", f"what is shown {number} ?", image=True)])
        batch = collator([Example(str(number), ids, [IGNORE] * len(ids), picture(number))]).inputs
        length = int(batch["attention_mask"].sum())
        inputs = {"input_ids": batch["input_ids"][:, :length], "attention_mask": batch["attention_mask"][:, :length]}
        inputs |= {name: batch[name] for name in ("pixel_values", "image_sizes")}
        with torch.no_grad():
            out = model.generate(
                **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None
            )
        tokens = out[0, length:].tolist()
        asked.append({"ids": ids, "image": picture(number).hex(), "tokens": tokens})
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", "tests.models.vllm_answers", str(folder), "asked.json", "answers.json"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert not any(one["error"] for one in answers)
    assert [one["ids"] for one in answers] == [one["tokens"] for one in asked]
    assert len({tuple(one["tokens"]) for one in asked}) > 1  # the prompts were not all answered alike
