"""Image tokens, padding, batches of mixed kinds, long examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ModelError
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.models.checkpoint import load_vlm
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import IGNORE, Example, conversation_example, text_example
from tests.training.conftest import picture


@pytest.fixture(scope="module")
def loaded(tiny_vlm: Path) -> tuple[Any, Any]:
    return load_vlm(tiny_vlm, "float32")


def described(processor: Any, number: int, answer: str = "a red circle", wide: int = 60) -> Example:
    chat = ChatFormat(processor.tokenizer, image_token=processor.image_token)
    turns = [Turn("user", "Describe the image.", image=True), Turn("assistant", answer)]
    return conversation_example(chat, turns, "assistant", id=f"i{number}", image=picture(number, wide=wide))


def test_image_tokens_are_the_processors_own(loaded: tuple[Any, Any]) -> None:
    from PIL import Image

    _, processor = loaded
    example = described(processor, 1)
    batch = Collator(processor, 512)([example])
    written = processor(images=[Image.new("RGB", (60, 60))], text=["<image>"], return_tensors="pt")["input_ids"][0]
    count = int(batch.inputs["attention_mask"].sum())
    at = example.ids.index(processor.image_token_id)
    wanted = [*example.ids[:at], *written.tolist(), *example.ids[at + 1 :]]
    assert len(written) == 55  # 25 for the whole picture, 5 x 5 with a newline each for its one tile
    assert batch.inputs["input_ids"][0, :count].tolist() == wanted
    labels = batch.inputs["labels"][0, :count]
    assert labels[labels != IGNORE].tolist() == [label for label in example.labels if label != IGNORE]
    assert batch.weight == sum(label != IGNORE for label in example.labels)


def test_mixed_batch_gives_each_example_its_own_loss(loaded: tuple[Any, Any]) -> None:
    """Padding, neighbours and the order of kinds change nothing for an example."""
    model, processor = loaded
    collator = Collator(processor, 512)
    examples = [text_example(processor.tokenizer, "0 1 2 3", id="t"), described(processor, 1), described(processor, 2)]
    with torch.no_grad():
        alone = [float(model(**collator([example]).inputs).loss) * collator([example]).weight for example in examples]
        together = collator(examples)
        loss = float(model(**together.inputs).loss) * together.weight
    assert loss == pytest.approx(sum(alone), rel=1e-5)
    assert together.inputs["input_ids"].shape[1] % 8 == 0


def test_long_example_is_left_out_and_noted(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    collator = Collator(processor, 100)
    batch = collator([described(processor, 1), described(processor, 2, "blue " * 100)])
    assert batch.ids == ["i1"]
    assert batch.refused == {"i2": Verdict.EXAMPLE_TOO_LONG}
    empty = collator([described(processor, 2, "blue " * 100)])
    assert (empty.weight, empty.ids) == (0.0, [])  # still a batch, so that workers stay in step


def test_batch_without_image_can_carry_a_blank_one(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    text = text_example(processor.tokenizer, "0 1 2 3", id="t")
    batch = Collator(processor, 512, always_image=True)([text])
    assert "pixel_values" in batch.inputs
    plain = Collator(processor, 512)([text])
    assert "pixel_values" not in plain.inputs
    assert batch.weight == plain.weight
    with torch.no_grad():
        assert float(model(**batch.inputs).loss) == pytest.approx(float(model(**plain.inputs).loss), rel=1e-5)


def test_image_without_placeholder_is_a_clear_error(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    with pytest.raises(ModelError, match="placeholder"):
        Collator(processor, 512)([Example("x", [1, 20, 21], [IGNORE, 20, 21], picture(1))])
    with pytest.raises(ModelError, match="no images"):
        Collator(processor.tokenizer, 512)([Example("x", [1, 20, 21], [IGNORE, 20, 21], picture(1))])


@pytest.mark.parametrize("family", ["tiny_qwen", "tiny_idefics", "tiny_llama_vision"])
def test_other_families_get_their_own_image_tokens_and_losses(family: str, request: pytest.FixtureRequest) -> None:
    """Pictures of several shapes (tiles, grids) and text share a batch, and each keeps its loss and its length."""
    model, processor = load_vlm(request.getfixturevalue(family), "float32")
    collator = Collator(processor, 512, always_image=True)
    text = text_example(processor.tokenizer, "0 1 2 3", id="t")
    examples = [
        described(processor, 1),
        text,
        described(processor, 2, wide=150),
        described(processor, 3, "0", wide=120),
    ]
    lengths = [len(collator.expand(example)[0]) for example in examples]
    assert lengths == [collator.length(example) for example in examples]
    assert len(set(lengths)) > (1 if family == "tiny_llama_vision" else 2)  # there an image is one token
    with torch.no_grad():
        alone = [float(model(**collator([one]).inputs).loss) * collator([one]).weight for one in examples]
        together = collator(examples)
        loss = float(model(**together.inputs).loss) * together.weight
    assert loss == pytest.approx(sum(alone), rel=1e-5)
    assert "pixel_values" in collator([text]).inputs  # the blank one, so that the tower takes part
