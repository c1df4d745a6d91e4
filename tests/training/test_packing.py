"""Packed, an example has the loss that it has alone: LLaVA-NeXT, Idefics3, and Qwen2-VL with its mRoPE positions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.models.checkpoint import load_vlm
from adamllm_ray.training.attention import attend_in_blocks
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import Example, conversation_example, text_example
from adamllm_ray.training.packing import rope_index
from tests.training.conftest import picture


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_qwen", "tiny_idefics"])
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return load_vlm(request.getfixturevalue(request.param), "float32")


def conversation(processor: Any, number: int, answer: str, side: int = 60) -> Example:
    chat = ChatFormat(processor.tokenizer, image_token=processor.image_token)
    turns = [Turn("user", "Describe the image.", image=True), Turn("assistant", answer)]
    return conversation_example(chat, turns, "assistant", id=f"i{number}", image=picture(number, side))


def summed_loss(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """Loss summed over labelled positions, computed from the logits as the step loop does."""
    labels = inputs["labels"]
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return float(loss)


@pytest.mark.parametrize("blocks", [False, True], ids=["mask", "blocks"])
def test_packed_examples_do_not_see_each_other(loaded: tuple[Any, Any], blocks: bool) -> None:
    loaded_model, processor = loaded
    model = copy.deepcopy(loaded_model)
    packing = Collator(processor, 512, packing=True, rope=rope_index(model.config))
    padding = Collator(processor, 512)
    examples = [
        conversation(processor, 1, "a red circle"),
        text_example(processor.tokenizer, "0 1 2 3", id="t"),
        conversation(processor, 2, "a blue square left of a red circle", side=90),
        conversation(processor, 3, "a circle"),
    ]
    with torch.no_grad():
        alone = [summed_loss(model, padding([example]).inputs) for example in examples]
        if blocks:
            assert attend_in_blocks(model)
        packed = packing(examples)
        together = summed_loss(model, packed.inputs)
    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert packed.inputs["input_ids"].shape[0] == 1
    assert "attention_mask" not in packed.inputs
    assert packed.weight == sum(padding([example]).weight for example in examples)
    with torch.no_grad():  # and the other way round: order changes nothing
        assert summed_loss(model, packing(examples[::-1]).inputs) == pytest.approx(together, rel=1e-5)


def test_mrope_is_what_the_model_would_compute(tiny_qwen: Path) -> None:
    model, processor = load_vlm(tiny_qwen, "float32")
    assert rope_index(load_vlm(tiny_qwen, "float32")[0].config) is not None
    example = conversation(processor, 1, "a red circle")
    inputs = Collator(processor, 512, packing=True, rope=rope_index(model.config))([example]).inputs
    own = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )[0]
    assert torch.equal(inputs["position_ids"][1:], own)
    assert torch.equal(inputs["position_ids"][0, 0], torch.arange(inputs["input_ids"].shape[1]))
