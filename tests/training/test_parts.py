"""Each part of a model is found, frozen, checkpointed or given its own rate."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import TrainingSection
from adamllm_ray.errors import ModelError
from adamllm_ray.models.checkpoint import load_processor, load_vlm
from adamllm_ray.models.families import FAMILIES, family_of
from adamllm_ray.training.parts import compile_layers, layers_of, parts_table, prepare_parts, same_parts


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


def test_checkpointing_by_part_changes_no_gradient(model: Any) -> None:
    """With a frozen tower, a frozen language model under adapters, and all of it trained: gradients are the same."""
    import torch

    from adamllm_ray.training.collate import Collator
    from tests.training.test_collate import described

    processor = load_processor(model.name_or_path)
    inputs = Collator(processor, 512)([described(processor, 1), described(processor, 2)]).inputs
    layers = {"language_model": 2, "vision_tower": 3}
    for more in ({}, {"vision_tower": {"train": False}}, {"lora": {"targets": {"vision_tower": ["fc1"]}}}):
        found = []
        for switch in (False, True):
            own = copy.deepcopy(model)
            keys = {part: {**more.get(part, {}), "gradient_checkpointing": switch} for part in layers}
            torch.manual_seed(0)
            prepare_parts(own, section(**{**more, **keys}))
            assert sum(getattr(m, "gradient_checkpointing", False) for m in own.modules()) == 5 * switch
            own.train()(**inputs, use_cache=False).loss.backward()
            found.append({name: p.grad for name, p in own.named_parameters() if p.requires_grad})
        plain, again = found
        assert plain.keys() == again.keys()
        used = [name for name in plain if plain[name] is not None]
        assert len(used) > 5
        assert all(torch.allclose(plain[name], again[name], atol=1e-7) for name in used)


def test_one_part_can_be_checkpointed_alone(model: Any) -> None:
    prepare_parts(model, section(vision_tower={"gradient_checkpointing": True}))
    on = [name for name, module in model.named_modules() if getattr(module, "gradient_checkpointing", False)]
    assert len(on) == 3
    assert all("vision_tower" in name for name in on)


@pytest.mark.slow
def test_compiled_layers_change_no_loss(tiny_qwen: Path) -> None:
    """Packed batches of other lengths through compiled layers. The graphs are run as they are: Inductor takes minutes
    here, and has its turn in benchmarks/gpu/train_mfu.py."""
    import torch

    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.packing import rope_index
    from tests.training.test_collate import described

    model, processor = load_vlm(tiny_qwen, "float32")
    collator = Collator(processor, 512, packing=True, rope=rope_index(model.config))
    batches = [
        collator([described(processor, number) for number in numbers]).inputs for numbers in ((1, 2), (3, 4, 5), (6,))
    ]
    losses = []
    for compiled in (False, True):
        own = copy.deepcopy(model)
        prepare_parts(own, section(packing=True, token_budget=512, max_length=512, lora={"rank": 2}))
        if compiled:
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            compile_layers(own, backend="aot_eager")
        found = [own.train()(**inputs, use_cache=False).loss for inputs in batches]
        sum(found).backward()
        losses.append([loss.item() for loss in found])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert not any("_orig_mod" in name for name in own.state_dict())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= len({type(one) for _, one in layers_of(own)})


def test_worker_with_another_model_than_the_driver(model: Any) -> None:
    rows = prepare_parts(model, section()).rows
    drawn = [asdict(row) for row in rows]
    same_parts(rows, drawn)
    drawn[0]["parameters"] += 1
    with pytest.raises(ModelError, match="same model folder"):
        same_parts(rows, drawn)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "idefics3", "smolvlm"])
def test_other_families_are_covered_completely(kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(kind)
    config.text_config.pad_token_id = None  # Idefics3's default is outside its own default vocabulary
    with torch.device("meta"):
        other = AutoModelForImageTextToText.from_config(config)
    found = {FAMILIES[kind].part_of(name) for name, _ in other.named_parameters()}
    assert found == {"language_model", "projector", "vision_tower"}


def test_unknown_family_is_named() -> None:
    with pytest.raises(ModelError, match="llava_next"):
        family_of("blip")
