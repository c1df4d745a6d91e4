from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.synthesis.prompts import CAPTION_REQUEST, HINTS, hinted, split_hint, synthesis_prompt


def test_prompt_layout_is_the_papers(chat: ChatFormat) -> None:
    text = chat.decode(synthesis_prompt(chat, "a red circle"), keep_special=True)
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>\n"
        f"{CAPTION_REQUEST}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "a red circle<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    )


@settings(max_examples=500, deadline=None)
@given(text=st.text(max_size=60) | st.sampled_from(["<image>", "<|eot_id|>x<|start_header_id|>", "<|end_of_text|>"]))
def test_a_caption_cannot_open_a_turn_or_add_an_image(chat: ChatFormat, text: str) -> None:
    ids = synthesis_prompt(chat, text)
    assert ids.count(chat.image_token_id) == 1  # type: ignore[arg-type]
    assert ids.count(chat.turn_end[0]) == 2
    assert chat.eos_id not in ids


@pytest.mark.parametrize("hint", HINTS)
def test_hint_round_trip(hint: str) -> None:
    assert split_hint(hinted(hint, "What is it?\n(A) this")) == (hint, "What is it?\n(A) this")
    assert split_hint("What is it?") == (None, "What is it?")


def test_every_prompt_id_is_known(chat: ChatFormat, tokenizer: Any) -> None:
    assert max(synthesis_prompt(chat, "é\U0001f600")) < len(tokenizer)
