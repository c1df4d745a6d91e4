"""Planned lengths are those of the batches: exact for tasks and replay, an upper bound where a request is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import ImageLimits
from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.models.checkpoint import load_processor
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import conversation_example, single_stage_turns
from adamllm_ray.training.lengths import FORMS, Lengths
from tests.training.conftest import picture, synthesized_rows


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl"])
def test_no_example_is_longer_than_planned(family: str, tiny_vlm: Path, tiny_qwen: Path) -> None:
    processor = load_processor(tiny_vlm if family == "llava_next" else tiny_qwen)
    measure, collator = Lengths(processor, ImageLimits()), Collator(processor, 4096)
    chat = ChatFormat(processor.tokenizer, image_token=processor.image_token)
    for row in [row | {"tasked": True} for row in synthesized_rows()[4:9] if row["instruction"]]:
        row["image"] = picture(1, side=90)
        planned = dict(zip(FORMS, measure(row), strict=True))
        for form in FORMS:
            lengths = []
            for epoch in range(30):
                turns = single_stage_turns(row, form, seed=0, epoch=epoch)
                example = conversation_example(chat, turns, "assistant", id=row["id"], image=row["image"])
                lengths.append(len(collator.expand(example)[0]))
            assert max(lengths) <= planned[form]
            if form == "task":
                assert set(lengths) == {planned[form]}


def test_forms_that_a_row_cannot_have_and_replay(tiny_vlm: Path) -> None:
    measure = Lengths(load_processor(tiny_vlm), ImageLimits())
    row: dict[str, Any] = synthesized_rows()[6] | {"tasked": False}
    assert (measure(row)[0], measure(row)[2]) == (0, 0)
    turns = json.dumps([("user", "0 1?"), ("assistant", "2")])
    replay = {"id": "r", "image": None, "turns": turns, "tasked": False}
    both, caption, task = measure(replay)
    assert both == caption == task > 4
    assert measure(replay | {"image": picture(1)})[0] > both + 50
    assert measure(replay | {"image": b"not an image"})[0] == 1  # refused, and recorded, when its turn comes
