"""A trained and exported model means the same to vLLM as to transformers: greedy tokens of 20 prompts are equal.

Three families are trained in full and with LoRA, under ZeRO-2 and ZeRO-3, on two gloo ranks of which one never has a
picture. The watchdog is the timeout of the ranks.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.models.checkpoint import load_vlm, resolve_model
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import IGNORE, Example
from tests.models.family_process import WAYS
from tests.training.conftest import picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS, TOKENS = 20, 10
ENV = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def asked(folder: Path) -> list[dict[str, Any]]:
    """Prompts with pictures of several shapes, and what transformers answers."""
    import torch

    model, processor = load_vlm(folder, "float32")
    chat, collator = ChatFormat(processor.tokenizer, image_token=processor.image_token), Collator(processor, 512)
    found = []
    for number in range(PROMPTS):
        ids = chat.prompt([Turn("user", f"what is shown {number} ?", image=True)])
        image = picture(number, wide=60 + 30 * (number % 3))
        batch = collator([Example(str(number), ids, [IGNORE] * len(ids), image)]).inputs
        length, width = int(batch["attention_mask"].sum()), batch.pop("labels").shape[1]
        inputs = {name: t[:, :length] if t.shape == (1, width) else t for name, t in batch.items()}
        with torch.no_grad():
            out = model.generate(
                **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None
            )
        found.append({"ids": ids, "image": image.hex(), "tokens": out[0, length:].tolist()})
    return found


def compare(jobs: dict[str, dict[str, Any]], folder: Path) -> None:
    distinct = {tuple(one["tokens"]) for job in jobs.values() for one in job["asked"]}
    assert len(distinct) > len(jobs)  # not all prompts were answered alike
    (folder / "asked.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.models.vllm_answers", "asked.json", "answers.json"]
    done = subprocess.run(command, cwd=folder, env=ENV, stderr=subprocess.PIPE, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((folder / "answers.json").read_text())
    for name, job in jobs.items():
        assert [one["error"] for one in answers[name] if one["error"]] == [], name
        assert [one["ids"] for one in answers[name]] == [one["tokens"] for one in job["asked"]], name


def two_ranks(base: Path, folder: Path) -> list[dict[str, Any]]:
    """Train in every way of `family_process`. What each rank found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = ENV | {"OMP_NUM_THREADS": "1"} | {key: str(value) for key, value in own.items()}
        command = [sys.executable, "-m", "tests.models.family_process", str(base), str(folder)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors[0][-3000:] + errors[1][-1000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_shipped_model(tmp_path: Path) -> None:
    folder = Path(resolve_model("pocket:base"))
    compare({"pocket": {"folder": str(folder), "adapter": None, "asked": asked(folder)}}, tmp_path)


@pytest.mark.parametrize("family", ["tiny_vlm", "tiny_qwen", "tiny_idefics"])
def test_trained_in_every_way(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base: Path = request.getfixturevalue(family)
    ranks = two_ranks(base, tmp_path)
    for name in WAYS:
        assert not any(ranks[0][name]["pictures"]), "rank 0 was to have no picture"
        assert all(ranks[1][name]["pictures"])
        assert ranks[0][name]["losses"] == ranks[1][name]["losses"]
    for way in ("full", "lora"):  # ZeRO-3 with gradient checkpointing against ZeRO-2 without
        two, three = (ranks[0][f"{way}-zero-{stage}"]["losses"] for stage in (2, 3))
        assert three == pytest.approx(two, rel=2e-5)
    jobs = {}
    for name in WAYS:
        model = tmp_path / name / "model"
        jobs[name] = {"folder": str(model), "adapter": None, "asked": asked(model)}
    # the adapter alone, on the model it was made for, is the merged model
    adapter = {"folder": str(base), "adapter": str(tmp_path / "lora-zero-3" / "adapter")}
    jobs["adapter"] = adapter | {"asked": jobs["lora-zero-3"]["asked"]}
    compare(jobs, tmp_path)
