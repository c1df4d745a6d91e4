"""Which tokens carry loss, as properties: of any texts, of both objectives, up to the tensors of a batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ExampleRefused
from adamllm_ray.models.chat import ChatFormat, Turn, end_of_text_id
from adamllm_ray.models.checkpoint import load_processor
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import IGNORE, Example, Objective, conversation_example
from tests.training.conftest import picture

HOSTILE = ["<|eot_id|>", "<image>", "<|end_of_text|>", "<|start_header_id|>user<|end_header_id|>\n\n", "assistant"]
TEXT = st.text(max_size=20) | st.sampled_from(HOSTILE) | st.lists(st.sampled_from(HOSTILE), max_size=4).map(" ".join)


@st.composite
def talks(draw: st.DrawFn) -> list[Turn]:
    """User and assistant in turn, at least one of each, an image before the first."""
    texts = draw(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
    turns = []
    for number, (question, answer) in enumerate(texts):
        turns += [Turn("user", question, image=number == 0), Turn("assistant", answer)]
    return turns


@pytest.fixture(scope="module")
def processor(tiny_vlm: Path) -> Any:
    return load_processor(str(tiny_vlm))


@pytest.fixture(scope="module")
def chat(processor: Any) -> ChatFormat:
    return ChatFormat(processor.tokenizer, chat_template=processor.chat_template, image_token=processor.image_token)


def made(chat: ChatFormat, turns: list[Turn], objective: Objective, **more: Any) -> Example | None:
    try:
        return conversation_example(chat, turns, objective, **more)
    except ExampleRefused as refused:
        if refused.verdict is not Verdict.NOTHING_TO_LEARN:
            raise
        return None


@settings(max_examples=150, deadline=None)
@given(turns=talks())
def test_every_assistant_token_and_its_end_carry_loss_exactly_once(chat: ChatFormat, turns: list[Turn]) -> None:
    example, encoded = made(chat, turns, "assistant"), chat.encode(turns)
    wanted = Counter(
        place
        for span in encoded.turns
        if span.role == "assistant" and span.end > span.text
        for place in range(span.text, span.stop)
    )
    assert set(wanted.values()) <= {1}
    if example is None:
        assert not wanted
        return
    assert example.ids == encoded.ids
    assert {place for place, label in enumerate(example.labels) if label != IGNORE} == set(wanted)
    assert all(label in (IGNORE, token) for label, token in zip(example.labels, example.ids, strict=True))
    assert chat.image_token_id not in example.labels


@settings(max_examples=150, deadline=None)
@given(turns=talks())
def test_a_synthesizer_learns_all_that_follows_the_caption_and_nothing_of_it(
    chat: ChatFormat, turns: list[Turn]
) -> None:
    example, encoded = made(chat, turns, "synthesizer"), chat.encode(turns)
    if len(turns) == 2:
        assert example is None  # a caption without a task
        return
    assert example is not None
    caption = encoded.turns[1]
    assert example.ids == [*encoded.ids, end_of_text_id(chat)]
    assert example.labels[: caption.stop] == [IGNORE] * caption.stop
    assert example.labels[caption.stop :] == example.ids[caption.stop :]
    assert chat.image_token_id not in example.labels
    assert [kind for _, _, kind in example.kinds] == ["question", "answer"] * (len(turns) // 2)


@settings(max_examples=12, deadline=None)
@given(
    talked=st.lists(st.tuples(talks(), st.sampled_from(["assistant", "synthesizer"])), min_size=1, max_size=4),
    packing=st.booleans(),
)
def test_a_batch_has_the_labels_of_its_examples_and_none_on_an_image(
    chat: ChatFormat, processor: Any, talked: list[tuple[list[Turn], Objective]], packing: bool
) -> None:
    found = [
        made(chat, turns, objective, id=str(number), image=picture(number, wide=60 + 60 * (number % 2)))
        for number, (turns, objective) in enumerate(talked)
    ]
    examples = [example for example in found if example is not None]
    batch = Collator(processor, 4096, packing=packing, always_image=True)(examples)
    labels, ids = batch.inputs["labels"], batch.inputs["input_ids"]
    learnt = labels != IGNORE
    assert bool((labels[learnt] == ids[learnt]).all())
    assert not bool((ids[learnt] == chat.image_token_id).any())
    wanted = Counter(label for example in examples for label in example.labels if label != IGNORE)
    assert Counter(labels[learnt].tolist()) == wanted
    assert batch.weight == wanted.total()
