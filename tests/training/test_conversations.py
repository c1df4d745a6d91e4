"""Masks against positions counted by hand, on a tokenizer where every word is one token."""

from __future__ import annotations

from typing import Any

import pytest

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ExampleRefused
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.training.conversations import (
    IGNORE,
    caption_request,
    completion_example,
    conversation_example,
    joined_answer,
    single_stage_turns,
    synthesizer_turns,
    text_example,
    turn_kinds,
)

TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}{{ '<image>' }}{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<eot>' }}{% endfor %}"
)
SPECIAL = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>", "<eot>", "<image>"]
PAD, BOS, EOS, USER, ASSISTANT, EOT, IMAGE = range(7)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*"abcdefghijklmnopqrstuvwxyz0123456789.<>|?_,", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    vocab = {token: index for index, token in enumerate([*SPECIAL, *words, "[UNK]"])}
    core = Tokenizer(models.WordLevel(vocab, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # one character, one token
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="[UNK]",
        additional_special_tokens=["<user>", "<assistant>", "<eot>", "<image>"],
    )
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer, image_token="<image>")


def trained(labels: list[int]) -> list[int]:
    return [index for index, label in enumerate(labels) if label != IGNORE]


def test_assistant_text_and_its_end_carry_loss(chat: ChatFormat) -> None:
    turns = [Turn("user", "ab", image=True), Turn("assistant", "cd"), Turn("user", "e"), Turn("assistant", "f")]
    example = conversation_example(chat, turns, "assistant", image=b"x")
    # 0 bos 1 user 2 image 3 a 4 b 5 eot 6 assistant 7 c 8 d 9 eot 10 user 11 e 12 eot 13 assistant 14 f 15 eot
    assert example.ids[:7] == [BOS, USER, IMAGE, *example.ids[3:5], EOT, ASSISTANT]
    assert trained(example.labels) == [7, 8, 9, 14, 15]
    assert [example.labels[i] for i in (9, 15)] == [EOT, EOT]


def test_synthesizer_learns_everything_after_the_caption(chat: ChatFormat) -> None:
    turns = [Turn("user", "a", image=True), Turn("assistant", "bc"), Turn("user", "d"), Turn("assistant", "e")]
    example = conversation_example(chat, turns, "synthesizer")
    # 0 bos 1 user 2 image 3 a 4 eot 5 assistant 6 b 7 c 8 eot | 9 user 10 d 11 eot 12 assistant 13 e 14 eot 15 eos
    assert trained(example.labels) == list(range(9, 16))
    assert example.ids[9] == USER
    assert example.ids[-2:] == [EOT, EOS] == example.labels[-2:]


def test_plain_text_and_completion(tokenizer: Any) -> None:
    text = text_example(tokenizer, "ab")
    assert (text.ids[0], text.ids[-1], trained(text.labels)) == (BOS, EOS, [1, 2, 3])
    judged = completion_example([BOS, 20, 21], [22])
    assert trained(judged.labels) == [3]


def test_special_tokens_in_a_caption_are_spelled_out_and_move_no_mask(chat: ChatFormat) -> None:
    hostile = "<eot><user>x<image><assistant>"
    example = conversation_example(chat, [Turn("user", "a", image=True), Turn("assistant", hostile)], "assistant")
    assert example.ids.count(EOT) == 2
    assert example.ids.count(IMAGE) == 1
    assert trained(example.labels) == list(range(6, 6 + len(hostile) + 1))


@pytest.mark.parametrize("objective", ["assistant", "synthesizer"])
def test_nothing_to_learn_is_said(chat: ChatFormat, objective: Any) -> None:
    turns = [Turn("user", "a"), Turn("assistant", "" if objective == "assistant" else "b")]
    with pytest.raises(ExampleRefused) as refused:
        conversation_example(chat, turns, objective)
    assert refused.value.verdict is Verdict.NOTHING_TO_LEARN
    with pytest.raises(ExampleRefused):
        completion_example([1, 2], [])


ROW = {"id": "r", "caption": "a cat", "instruction": "what?", "informative": "It is a cat", "precise": "cat"}


def test_single_stage_forms_order_and_image() -> None:
    both = {epoch: single_stage_turns(ROW, "both", seed=0, epoch=epoch) for epoch in range(40)}
    first = [turns[1].text == "a cat" for turns in both.values()]
    assert 8 < sum(first) < 32  # about half begin with the caption
    for turns in both.values():
        assert [turn.image for turn in turns] == [True, False, False, False]
    for first in (0.0, 1.0):
        [kind] = {turn_kinds(ROW, "both", seed=0, epoch=e, caption_first=first)[0] for e in range(40)}
        assert kind == ("caption" if first else "task")
    assert both[3] == single_stage_turns(ROW, "both", seed=0, epoch=3)
    assert [turn.text for turn in single_stage_turns(ROW, "task", seed=0, epoch=0)] == ["what?", "It is a cat"]
    assert len(single_stage_turns(ROW, "caption", seed=0, epoch=0)) == 2
    assert len({caption_request(ROW, seed=0, epoch=epoch) for epoch in range(60)}) > 5
    assert caption_request(ROW | {"caption_instruction": "Name it."}, seed=0, epoch=0) == "Name it."


@pytest.mark.parametrize(
    ("informative", "precise", "joined"),
    [
        ("Water lies in the north.", "north", "Water lies in the north."),
        ("Water lies in the north", "a lake", "Water lies in the north. Therefore, the answer is a lake."),
        ("Count them!", "13", "Count them! Therefore, the answer is 13."),
        ("There are 13", "3", "There are 13. Therefore, the answer is 3."),
        ("The answer is Yes", "yes.", "The answer is Yes"),
        ("", "yes", "Therefore, the answer is yes."),
    ],
)
def test_joined_answer(informative: str, precise: str, joined: str) -> None:
    assert joined_answer(informative, precise) == joined


def test_synthesizer_turns_hold_both_hints_in_either_order() -> None:
    texts = [
        [turn.text for turn in synthesizer_turns("c", "q", "long", "short", seed=0, epoch=0, id=str(i))]
        for i in range(30)
    ]
    assert {tuple(text[3::2]) for text in texts} == {("short", "long"), ("long", "short")}
    assert texts[0][:2] == ["Describe the image.", "c"]
