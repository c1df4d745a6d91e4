"""Counted FLOPs against torch's own counter on real models, and the arithmetic of images and sub-sequences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adamllm_ray.config import parse_config
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.models.checkpoint import load_vlm
from adamllm_ray.training.collate import Batch, Collator
from adamllm_ray.training.conversations import IGNORE, conversation_example
from adamllm_ray.training.flops import _grid, batch_flops, flop_rates, known_peak, peak_flops
from adamllm_ray.training.packing import rope_index
from adamllm_ray.training.parts import prepare_parts
from tests.training.conftest import picture

WORDS = "a red circle left of a blue square " * 6
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 4}},
    "lora alone": {"lora": {"rank": 4}, "projector": {"train": False}, "vision_tower": {"train": False}},
    "tower frozen": {"vision_tower": {"train": False}},
    "projector alone": {"language_model": {"train": False}, "vision_tower": {"train": False}},
}


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_qwen", "tiny_idefics"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def _example(processor: Any, name: str, image: bytes | None) -> Any:
    chat = ChatFormat(processor.tokenizer, chat_template=processor.chat_template, image_token=processor.image_token)
    turns = [Turn("user", WORDS, image=image is not None), Turn("assistant", WORDS)]
    return conversation_example(chat, turns, "assistant", id=name, image=image)


def _model(folder: Path, training: dict[str, Any]) -> tuple[Any, Any]:
    model, processor = load_vlm(folder, "float32")
    model.set_attn_implementation("eager")  # plain products: torch's counter knows each of them
    tree = {"run": {"output": "unused"}, "training": training}
    prepare_parts(model, parse_config(tree).training)
    return model.train(), processor


def _single(processor: Any) -> Batch:
    """One example with an image, without the padding to a round number of tokens."""
    batch = Collator(processor, 1024)([_example(processor, "a", picture(1))])
    width = batch.inputs["input_ids"].shape[1]
    inputs = {k: v[:, : batch.tokens] if v.shape[1:] == (width,) else v for k, v in batch.inputs.items()}
    return replace(batch, inputs=inputs)


def _counted(model: Any, batch: Batch) -> float:
    """What torch counts for the pass that the step loop makes, less the tower's layers that nothing depends on."""
    labels = batch.inputs["labels"][:, 1:]
    columns = (labels != IGNORE).any(0).nonzero().flatten()
    inputs = {name: value for name, value in batch.inputs.items() if name != "labels"}
    counter = FlopCounterMode(display=False)
    with counter:
        logits = model(**inputs, logits_to_keep=columns, use_cache=False).logits
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, columns].flatten(), ignore_index=IGNORE
        ).backward()
    last = next((name for name in counter.get_flop_counts() if name.endswith(".layers.2") and "tower" in name), None)
    unused = sum(counter.get_flop_counts()[last].values()) if last else 0
    return counter.get_total_flops() - unused


@pytest.mark.parametrize("setting", SETTINGS)
def test_flops_are_those_that_torch_counts(folder: Path, setting: str) -> None:
    model, processor = _model(folder, SETTINGS[setting])
    batch, rates = _single(processor), flop_rates(model)
    assert rates is not None
    assert batch_flops(rates, batch) == pytest.approx(_counted(model, batch), rel=0.02)


def test_padding_fillers_and_packing_change_nothing(folder: Path) -> None:
    """A batch counts as its examples on their own, however they are put together."""
    model, processor = _model(folder, {})
    rates = flop_rates(model)
    assert rates is not None
    plain = Collator(processor, 1024)
    packed = Collator(processor, 1024, packing=True, rope=rope_index(model.config))
    filled = Collator(processor, 1024, always_image=True)
    examples = [_example(processor, "a", picture(1)), _example(processor, "b", None), _example(processor, "c", None)]
    examples[2] = conversation_example(
        ChatFormat(processor.tokenizer, chat_template=processor.chat_template, image_token=processor.image_token),
        [Turn("user", "a"), Turn("assistant", "b")],
        "assistant",
        id="c",
        image=None,
    )
    alone = sum(batch_flops(rates, plain([example])) for example in examples)
    assert batch_flops(rates, plain(examples)) == pytest.approx(alone)
    assert batch_flops(rates, packed(examples)) == pytest.approx(alone)
    text = examples[1:]
    assert batch_flops(rates, filled(text)) == pytest.approx(sum(batch_flops(rates, plain([one])) for one in text))
    assert batch_flops(rates, filled(text, weighted=False)) == 0


def test_windows_of_an_image_cover_it_once() -> None:
    image = _grid(1, 20, 12, vision=SimpleNamespace(window_size=112, patch_size=14))
    assert sum(image.windows) == image.patches == 240
    assert sorted(image.windows) == sorted([64, 32, 64, 32, 32, 16])


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA A10G", 70.0),
    ],
)
def test_known_cards(device: str, tflops: float) -> None:
    assert known_peak(device) == pytest.approx(tflops * 1e12)


def test_unknown_cards_have_no_peak_unless_told() -> None:
    assert known_peak("Some GPU 9000") is None
    assert peak_flops(2.5) == pytest.approx(2.5e12)
