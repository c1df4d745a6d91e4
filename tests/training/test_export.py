"""The exported folder is the trained model, whatever the ZeRO stage, with adapters merged and embeddings tied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adamllm_ray.config import TrainingSection
from adamllm_ray.data import storage
from adamllm_ray.models.checkpoint import export_model, load_vlm
from adamllm_ray.training.export import export_trained, trained_model
from adamllm_ray.training.loop import StepLoop
from adamllm_ray.training.parts import prepare_parts


def loop_over(base: Path, **section: Any) -> tuple[StepLoop, TrainingSection]:
    settings = TrainingSection.model_validate({"precision": "fp32", "global_batch": 4, "micro_batch": 4} | section)
    torch.manual_seed(0)
    model, _ = load_vlm(base, "float32")
    groups = prepare_parts(model, settings).groups
    return StepLoop(model, settings, steps=1, groups=groups), settings


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_full_weights(zero_stage: int, tiny_vlm: Path, tmp_path: Path) -> None:
    """Nothing was trained, so every file but for spelling is the base's."""
    loop, section = loop_over(tiny_vlm, zero_stage=zero_stage)
    export_trained(loop, str(tiny_vlm), section, storage.resolve(str(tmp_path / "model")))
    base, _ = load_vlm(tiny_vlm, "float32")
    found, processor = load_vlm(tmp_path / "model", "float32")
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in base.state_dict().items())
    assert processor.chat_template
    again = export_model(base, processor, tmp_path / "again")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / "model" / name).read_bytes(), name


@pytest.mark.slow
def test_adapters_are_merged(tiny_vlm: Path) -> None:
    loop, section = loop_over(tiny_vlm, zero_stage=3, lora={"rank": 2}, vision_tower={"train": False})
    import deepspeed

    module = loop.engine.module
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if "lora_B" in name:
                parameter.data.fill_(0.1)
    whole = trained_model(loop, str(tiny_vlm), section)
    assert whole is not None
    base, _ = load_vlm(tiny_vlm, "float32")
    changed = {
        name for name, tensor in whole[0].state_dict().items() if not torch.equal(tensor, base.state_dict()[name])
    }
    assert changed
    assert all(".self_attn." in name and "language_model" in name for name in changed)


@pytest.mark.slow
def test_large_models_are_cut_into_shards(tiny_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adamllm_ray.models.checkpoint.SHARD_BYTES", 200_000)
    base, processor = load_vlm(tiny_vlm, "float32")
    folder = export_model(base, processor, tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    found, _ = load_vlm(folder, "float32")
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in base.state_dict().items())
