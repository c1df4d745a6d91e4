"""Each part of a model is found, frozen or given its own rate; LoRA adds what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import TrainingSection
from adamllm_ray.errors import ModelError
from adamllm_ray.models.checkpoint import load_vlm
from adamllm_ray.models.families import FAMILIES, family_of
from adamllm_ray.training.parts import attach_lora, parts_table, prepare_parts


def section(**keys: Any) -> TrainingSection:
    return TrainingSection.model_validate({"learning_rate": 2e-5, **keys})


@pytest.fixture
def model(tiny_vlm: Path) -> Any:
    return load_vlm(tiny_vlm, "float32")[0]


def test_own_learning_rate_and_no_decay_on_vectors(model: Any) -> None:
    parts = prepare_parts(model, section(weight_decay=0.1, vision_tower={"learning_rate": 2e-6}))
    assert [row.learning_rate for row in parts.rows] == [2e-5, 2e-5, 2e-6]
    assert all(row.trainable == row.parameters > 0 for row in parts.rows)
    grouped = sum(parameter.numel() for group in parts.groups for parameter in group["params"])
    assert grouped == sum(parameter.numel() for parameter in model.parameters())
    for group in parts.groups:
        assert {parameter.dim() > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}
    assert "2e-06" in parts_table(parts.rows)


def test_frozen_part(model: Any) -> None:
    parts = prepare_parts(model, section(vision_tower={"train": False}))
    assert [row.trainable > 0 for row in parts.rows] == [True, True, False]
    assert not any(p.requires_grad for p in model.model.vision_tower.parameters())
    off = {"train": False}
    with pytest.raises(ModelError, match="nothing is to be trained"):
        prepare_parts(model, section(vision_tower=off, projector=off, language_model=off))


def test_lora_trains_adapters_only_and_merges_exactly(model: Any) -> None:
    import torch

    lora = section(lora={"rank": 4, "alpha": 8.0})
    names = {name for name, _ in model.named_parameters()}
    rows = prepare_parts(model, lora).rows
    assert rows[0].trainable == 2 * 4 * (4 * (64 + 64))  # layers x rank x (q, k, v, o) x (in + out)
    assert lora.lora is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    ids = torch.tensor([[1, 20, 21, 22]])
    wanted = model.eval()(input_ids=ids).logits
    fresh = type(model)(model.config).eval()
    tuner = attach_lora(fresh, lora.lora)
    fresh.load_state_dict(model.state_dict())
    merged = tuner.merge_and_unload()
    assert {name for name, _ in merged.named_parameters()} == names
    assert torch.allclose(merged(input_ids=ids).logits, wanted, atol=1e-5)


def test_lora_target_that_matches_nothing(model: Any) -> None:
    with pytest.raises(ModelError, match="match no linear layer"):
        prepare_parts(model, section(lora={"targets": ["nonsense"]}))


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_other_families_are_covered_completely(kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        other = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind))
    found = {FAMILIES[kind].part_of(name) for name, _ in other.named_parameters()}
    assert found == {"language_model", "projector", "vision_tower"}


def test_unknown_family_is_named() -> None:
    with pytest.raises(ModelError, match="llava_next"):
        family_of("blip")
