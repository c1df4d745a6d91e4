"""Adapters go where they were asked for, merge exactly, and are read by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adamllm_ray.config import TrainingSection
from adamllm_ray.errors import ConfigError
from adamllm_ray.models.checkpoint import load_vlm
from adamllm_ray.training.adapters import attach_lora, saved_modules, write_adapter
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.parts import prepare_parts
from tests.training.test_collate import described

SAVED = {
    "rank": 4,
    "alpha": 8.0,
    "targets": {"vision_tower": ["q_proj", "fc1"]},
    "modules_to_save": ["multi_modal_projector"],
}


def section(**lora: Any) -> TrainingSection:
    return TrainingSection.model_validate({"learning_rate": 2e-5, "lora": lora})


@pytest.fixture
def loaded(tiny_vlm: Path) -> tuple[Any, Any]:
    return load_vlm(tiny_vlm, "float32")


def changed(model: Any) -> None:
    """As if it had been trained: every trainable parameter moves."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**inputs).logits
    return found


@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8.0}, SAVED], ids=["language model", "all parts"])
def test_adapters_merge_exactly(lora: dict[str, Any], loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    names = {name for name, _ in model.named_parameters()}
    rows = prepare_parts(model, section(**lora)).rows
    assert rows[0].trainable == 2 * 4 * (4 * (64 + 64))  # layers x rank x (q, k, v, o) x (in + out)
    if lora == SAVED:  # the tower's adapters; of the projector, all but the newline vector
        assert rows[2].trainable == 3 * 4 * ((64 + 64) + (64 + 128))
        assert rows[1].trainable == rows[1].parameters - 64
    changed(model)
    inputs = Collator(processor, 512)([described(processor, 1)]).inputs
    wanted = logits(model, inputs)
    fresh = type(model)(model.config)
    tuner = attach_lora(fresh, section(**lora))
    fresh.load_state_dict(model.state_dict())
    merged = tuner.merge_and_unload()
    assert {name for name, _ in merged.named_parameters()} == names
    assert torch.allclose(logits(merged, inputs), wanted, atol=1e-5)


def test_peft_reads_the_adapter(loaded: tuple[Any, Any], tiny_vlm: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model, processor = loaded
    own = section(**SAVED, export_adapter=True)
    prepare_parts(model, own)
    changed(model)
    plain, _ = load_vlm(tiny_vlm, "float32")
    write_adapter(model.state_dict(), plain, own, "a/base", tmp_path / "adapter")
    inputs = Collator(processor, 512)([described(processor, 1)]).inputs
    read = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert torch.allclose(logits(read, inputs), logits(model, inputs), atol=1e-5)


def test_all_means_every_layer_but_the_last(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    attach_lora(model, section(targets={"language_model": ["all"], "projector": ["linear_1"]}))
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert len(adapted) == 2 * 7 + 1
    assert not any("lm_head" in name for name in adapted)


@pytest.mark.parametrize("part", ["language_model", "projector", "vision_tower"])
def test_target_that_matches_nothing_in_its_part(part: str, loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"training\.lora\.targets\.{part}: 'gate_of_dawn' matches no .* called"):
        prepare_parts(loaded[0], section(targets={part: ["gate_of_dawn"]}))


def test_module_to_save_that_matches_nothing(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"training\.lora\.modules_to_save: 'projector' matches no module"):
        prepare_parts(loaded[0], section(modules_to_save=["projector"]))
    with pytest.raises(ConfigError, match="name a module inside one part"):
        saved_modules(loaded[0], section(modules_to_save=["model"]))
    frozen = TrainingSection.model_validate(
        {"projector": {"train": False}, "lora": {"modules_to_save": ["multi_modal_projector"]}}
    )
    with pytest.raises(ConfigError, match=r"set training\.projector\.train=true"):
        prepare_parts(loaded[0], frozen)


def test_no_part_takes_adapters(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="no part takes adapters"):
        prepare_parts(loaded[0], section(targets={"language_model": []}))


def test_adapter_that_would_not_be_the_whole_model(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"export_adapter: projector and vision_tower would train in full"):
        prepare_parts(loaded[0], section(export_adapter=True))
