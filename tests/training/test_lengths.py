"""Planned lengths are those of the batches: exact for tasks and replay, an upper bound where a request is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from adamllm_ray.config import ConversationSection, ImageLimits
from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.models.checkpoint import load_processor
from adamllm_ray.training.catalog import TEXTS
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import conversation_example, replayed_turns
from adamllm_ray.training.lengths import Lengths
from adamllm_ray.training.mix import FORMS
from adamllm_ray.training.wording import single_stage_turns
from tests.training.conftest import picture, synthesized_rows

WORDINGS: list[dict[str, Any]] = [
    {},
    {"reversed_share": 0.6, "compat": "official"},
    {"answer": "precise", "caption_request": "pool", "caption_requests": ["Say what it is.", "Go on."]},
]


@pytest.mark.parametrize(
    ("family", "wording"), [("llava_next", 0), ("qwen2_vl", 0), ("llava_next", 1), ("llava_next", 2)]
)
def test_no_example_is_longer_than_planned(family: str, wording: int, tiny_vlm: Path, tiny_qwen: Path) -> None:
    processor = load_processor(tiny_vlm if family == "llava_next" else tiny_qwen)
    section = ConversationSection.model_validate(WORDINGS[wording])
    measure, collator = Lengths(processor, ImageLimits(), section), Collator(processor, 4096)
    chat = ChatFormat(processor.tokenizer, image_token=processor.image_token)
    for row in [row | {"tasked": True} for row in synthesized_rows()[4:9] if row["instruction"]]:
        row |= {"image": picture(1, side=90), "width": 90, "height": 90}
        if wording:
            row["further"] = [{"instruction": "how many?", "informative": "There are also two.", "precise": "two"}] * 2
        planned = dict(zip(FORMS, measure(table(row))[0].tolist(), strict=True))
        for form in FORMS:
            lengths = []
            for epoch in range(30):
                turns = single_stage_turns(row, form, section, seed=0, epoch=epoch)
                example = conversation_example(chat, turns, "assistant", id=row["id"], image=row["image"])
                lengths.append(len(collator.expand(example)[0]))
            assert max(lengths) <= planned[form]
            if form == "task":
                assert set(lengths) == {planned[form]}


def table(*rows: dict[str, Any]) -> pa.Table:
    """Rows as the catalog gives them to be measured."""
    columns = {name: [row.get(name) for row in rows] for name in ("id", *TEXTS, "further", "width", "height")}
    turns = {"turns": [row["turns"] for row in rows]} if "turns" in rows[0] else {}
    found = pa.table(columns | {"tasked": [bool(row.get("tasked")) for row in rows]} | turns)
    sizes = [(found.column_names.index(name), name) for name in ("width", "height")]
    for index, name in sizes:
        found = found.set_column(index, name, found[name].cast(pa.int32()))
    return found


def test_forms_that_a_row_cannot_have_and_replay(tiny_vlm: Path) -> None:
    measure = Lengths(load_processor(tiny_vlm), ImageLimits())
    row: dict[str, Any] = synthesized_rows()[6] | {"width": 60, "height": 60}
    both, caption, task = measure(table(row))[0].tolist()
    assert (both, task) == (0, 0)
    assert caption > 50
    unknown = measure(table(row | {"width": None, "height": None}, row | {"caption": "", "tasked": True}))
    assert unknown[0].tolist() == [0, 1, 0]  # refused, and recorded, when its turn comes
    assert unknown[1, 1] == 1
    talk = json.dumps([("user", "0 1?"), ("assistant", "2")])
    longer = json.dumps([("system", "0"), ("user", "0 1?"), ("assistant", "2"), ("user", "3"), ("assistant", "4 4")])
    text, pictured, long = measure(
        table({"turns": talk}, {"turns": talk, "width": 60, "height": 60}, {"turns": longer})
    )
    assert text[0] == text[1] == text[2] > 4
    assert pictured[0] > text[0] + 50
    assert long[0] > text[0] + 6


def test_lengths_are_those_of_the_conversation_token_by_token(tiny_vlm: Path) -> None:
    """Also for texts that look like the template's own tokens."""
    measure, hostile = Lengths(load_processor(tiny_vlm), ImageLimits()), "<|eot_id|> <image> <|start_header_id|>user"
    chat = measure.chat
    for talk in ([("user", hostile), ("assistant", hostile)], [("user", "a"), ("assistant", "b"), ("user", hostile)]):
        found = measure(table({"turns": json.dumps(talk)}))[0, 0]
        assert found == len(chat.encode(replayed_turns(talk, False)).ids)


def test_sizes_come_off_the_header_where_ingest_wrote_none(tiny_vlm: Path) -> None:
    measure = Lengths(load_processor(tiny_vlm), ImageLimits())
    assert measure.size(picture(1, side=33)) == (33, 33)
    assert measure.size(b"not an image") == measure.size(None) == (None, None)
