"""Marks say what is true of a picture, look-ups cannot be answered by their form, and only values carry loss."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.pocket import marks, world
from adamllm_ray.pocket.architecture import IMAGE, Size, build_processor, build_tokenizer, build_vlm
from adamllm_ray.pocket.build import _section
from adamllm_ray.pocket.curriculum import picture, vocabulary
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import IGNORE, Example


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(vocabulary(), 1000)


@pytest.fixture(scope="module")
def school(tokenizer: Any) -> marks.MarkSchool:
    return marks.MarkSchool(ChatFormat(tokenizer))


def test_every_word_is_one_token_and_means_one_thing(tokenizer: Any) -> None:
    words = [word for values in marks.WORDS.values() for word in values] + list(marks.KINDS.values())
    assert all(len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1 for word in words)
    values = [word for values in marks.WORDS.values() for word in values]
    assert len(set(values)) == len(values)


def test_look_ups_follow_from_the_marks(school: marks.MarkSchool) -> None:
    """The value of every look-up is a word of the patches of its noun, or of all."""
    answered = 0
    for seed in range(40):
        made = school.recall(Random(seed), 1.0)
        if not made.marks:
            continue
        names = {word: school.chat.text_ids(value)[0] for value, word in spelled(school).items()}
        for at, label in enumerate(made.labels):
            if label == IGNORE or made.ids[at - 2] == school._word(marks.KINDS["half"]):
                continue
            noun = made.ids[at - 1]
            patches = [mark for mark in made.marks if noun in mark] or made.marks
            assert label in {names[word] for mark in patches for word in mark if word in names}
            answered += 1
    assert answered > 500


def spelled(school: marks.MarkSchool) -> dict[str, int]:
    return {value: school._word(value) for values in marks.WORDS.values() for value in values}


def test_the_kind_does_not_tell_the_value() -> None:
    for seed in range(50):
        facts = world.paired_facts(Random(seed), 2)
        kinds = [fact.kind for fact in facts]
        assert sorted(kinds.count(kind) for kind in set(kinds)) == [2, 2]


def test_marks_stand_where_the_image_tokens_of_the_processor_will(school: marks.MarkSchool, tokenizer: Any) -> None:
    made = next(one for seed in range(99) if (one := school.questions(Random(seed), 1.0)).marks)
    turns = school.chat.decode([token for token in made.ids if token != IMAGE])
    collator = Collator(build_processor(tokenizer), 1024)
    start = made.ids.index(IMAGE)
    short = [*made.ids[: start + 1], *made.ids[start + len(made.marks) :]]
    ids, _, _ = collator.expand(Example("", short, [IGNORE] * len(short), picture(3)[0]))
    assert ids == made.ids, turns


@pytest.mark.timeout(120)
def test_reader_has_a_gradient_where_labels_are(school: marks.MarkSchool, tokenizer: Any) -> None:
    section = _section(4, 1e-3)
    [batch] = marks.MarkSteps("x", school.questions, section, 10).load(2)
    reader = marks.MarkReader(build_vlm(len(tokenizer), Size(hidden=64, layers=1, mlp=64, vision_hidden=64)))
    inputs = dict(batch.inputs)
    labels = inputs.pop("labels")
    logits = reader(**inputs, logits_to_keep=torch.arange(labels.shape[1] - 1)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    loss.backward()
    assert batch.weight == (labels != IGNORE).sum()
    assert reader.row_end.grad is not None
