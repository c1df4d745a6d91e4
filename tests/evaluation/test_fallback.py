"""The transformers backend writes what vLLM writes, token for token, with and without an adapter."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adamllm_ray.config import EngineSection
from adamllm_ray.errors import ModelError
from adamllm_ray.evaluation import fallback
from adamllm_ray.evaluation.fallback import TransformersEngine
from adamllm_ray.models.chat import Turn
from adamllm_ray.synthesis.actors import load_chat
from adamllm_ray.synthesis.requests import Completion, Request, SamplingSpec
from tests.tiny import tiny_mllama
from tests.training.conftest import picture

PROMPTS, TOKENS = 9, 10
SETTINGS = EngineSection(max_model_len=512, max_num_seqs=4, kv_cache_gib=0.1)


@pytest.fixture(scope="module")
def adapter(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA adapter of the language model, as peft writes it."""
    import torch
    from peft import LoraConfig, get_peft_model

    from adamllm_ray.models.checkpoint import load_vlm

    torch.manual_seed(0)
    names = r".*language_model.*\.(q_proj|v_proj)"
    model = get_peft_model(
        load_vlm(tiny_vlm, "float32")[0], LoraConfig(r=4, target_modules=names, init_lora_weights=False)
    )
    folder = tmp_path_factory.mktemp("lora")
    model.save_pretrained(folder)
    return folder


def prompts(folder: Path) -> list[dict[str, Any]]:
    """Prompts of unequal length with pictures of unequal shape, so that a batch needs padding."""
    chat = load_chat(str(folder))
    return [
        {
            "ids": chat.prompt([Turn("user", f"what is shown {'there ' * number}?", image=True)]),
            "image": picture(number, wide=60 + 30 * (number % 3)).hex(),
            "tokens": [0] * TOKENS,
        }
        for number in range(PROMPTS)
    ]


def requests(asked: list[dict[str, Any]]) -> list[Request]:
    opened = [Image.open(io.BytesIO(bytes.fromhex(one["image"]))).convert("RGB") for one in asked]
    return [Request(str(i), one["ids"], image) for i, (one, image) in enumerate(zip(asked, opened, strict=True))]


def generated(engine: TransformersEngine, asked: list[Request], **sampling: Any) -> list[Completion]:
    return asyncio.run(engine.generate(asked, SamplingSpec(**({"max_tokens": TOKENS} | sampling))))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_backends_write_the_same_tokens(tiny_vlm: Path, tiny_qwen: Path, adapter: Path, tmp_path: Path) -> None:
    jobs = {
        "llava": {"folder": str(tiny_vlm), "adapter": None, "asked": prompts(tiny_vlm)},
        "qwen": {"folder": str(tiny_qwen), "adapter": None, "asked": prompts(tiny_qwen)},
        "adapter": {"folder": str(tiny_vlm), "adapter": str(adapter), "asked": prompts(tiny_vlm)},
    }
    (tmp_path / "asked.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.models.vllm_answers", "asked.json", "answers.json"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((tmp_path / "answers.json").read_text())
    found = {}
    for name, job in jobs.items():
        engine = TransformersEngine(job["folder"], SETTINGS.model_copy(update={"lora": job["adapter"]}))
        found[name] = [one.token_ids for one in generated(engine, requests(job["asked"]))]
        assert found[name] == [one["ids"] for one in answers[name]], name
    assert found["adapter"] != found["llava"]
    assert len({tuple(ids) for ids in found["llava"]}) > 1


def test_stop_tokens_and_limits_of_each_request(tiny_vlm: Path) -> None:
    engine = TransformersEngine(str(tiny_vlm), SETTINGS)
    asked = requests(prompts(tiny_vlm))
    whole = generated(engine, asked)
    assert {one.finish_reason for one in whole} == {"length"}
    stop = whole[0].token_ids[3]
    for one, before in zip(generated(engine, asked, stop_token_ids=(stop,)), whole, strict=True):
        end = before.token_ids.index(stop) + 1 if stop in before.token_ids else TOKENS
        assert one.token_ids == before.token_ids[:end]
        assert one.finish_reason == ("stop" if stop in before.token_ids else "length")
    short = [Request(one.id, one.prompt_token_ids, one.image, SamplingSpec(2)) for one in asked[:1]]
    answers = generated(engine, [*short, *asked[1:3]])
    assert [one.token_ids for one in answers] == [whole[0].token_ids[:2], whole[1].token_ids, whole[2].token_ids]
    assert all(one.prompt_tokens > len(request.prompt_token_ids) for one, request in zip(answers, asked, strict=False))
    assert all(one.seconds for one in answers)


def test_only_the_guilty_row_is_refused(tiny_vlm: Path) -> None:
    engine = TransformersEngine(str(tiny_vlm), SETTINGS)
    first, second, third = requests(prompts(tiny_vlm))[:3]
    long = Request("long", [*second.prompt_token_ids, *[7] * 600], second.image)
    blind = Request("blind", [1, 50, 60], third.image)
    answers = generated(engine, [first, long, blind])
    assert answers[0].token_ids == generated(engine, [first])[0].token_ids
    assert answers[1].too_long
    assert answers[1].token_ids == []
    assert not answers[2].too_long
    assert "placeholder" in str(answers[2].error)


def test_nothing_but_greedy(tiny_vlm: Path) -> None:
    engine = TransformersEngine(str(tiny_vlm), SETTINGS)
    with pytest.raises(ValueError, match="greedily"):
        generated(engine, requests(prompts(tiny_vlm))[:1], temperature=1.0)


def test_adapter_of_another_model(tiny_qwen: Path, tiny_vlm: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter_config"):
        TransformersEngine(str(tiny_vlm), SETTINGS.model_copy(update={"lora": str(tmp_path)}))
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"target_modules": ["nowhere"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="does not fit this model"):
        TransformersEngine(str(tiny_vlm), SETTINGS.model_copy(update={"lora": str(tmp_path)}))


def test_a_family_that_vllm_gave_up(tmp_path: Path) -> None:
    """Mllama attends to pictures across: batched and padded it writes what its own processor and one row give."""
    import torch

    from adamllm_ray.models.checkpoint import load_vlm
    from adamllm_ray.pocket.architecture import build_tokenizer
    from tests.conftest import TINY_TEXTS

    folder = tiny_mllama(build_tokenizer(TINY_TEXTS, 600), tmp_path / "mllama")
    asked = requests(prompts(folder))
    found = generated(TransformersEngine(str(folder), SETTINGS), asked)
    model, processor = load_vlm(folder, "float32")
    for request, one in zip(asked, found, strict=True):
        text = processor.tokenizer.decode(request.prompt_token_ids)
        inputs = processor(images=[request.image], text=[text], return_tensors="pt", add_special_tokens=False)
        assert inputs["input_ids"][0].tolist() == request.prompt_token_ids
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
        assert one.token_ids == out[0, len(request.prompt_token_ids) :].tolist()
    assert len({tuple(one.token_ids) for one in found}) > 1


def test_the_backend_is_chosen_by_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in ("start_engine", "start_transformers"):
        monkeypatch.setattr(fallback, name, lambda model, settings, images, name=name: asked.append(name))
    monkeypatch.setattr(fallback, "has_model", lambda model, settings: model == "known")
    for model in ("known", "unknown"):
        fallback.start_either(model, SETTINGS, True)
    assert asked == ["start_engine", "start_transformers"]
    assert fallback.engine_maker("auto") is fallback.start_either
