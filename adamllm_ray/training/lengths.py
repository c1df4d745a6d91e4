"""How many tokens each record has in each form, image tokens included, before anything is trained.

    measure = Lengths(processor, section, limits)
    both, caption, task = measure(row)

Batches are planned from these numbers by every worker alike. They are upper bounds: a caption's request is drawn anew
each epoch, so the longest one counts. Only an image's header is read.
"""

from __future__ import annotations

import json
from typing import Any, cast

from adamllm_ray.config import ImageLimits
from adamllm_ray.errors import ExampleRefused, ImageRefused
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import (
    CAPTION_REQUESTS,
    Form,
    conversation_example,
    replayed_turns,
    single_stage_turns,
)

FORMS: tuple[Form, ...] = ("both", "caption", "task")


class Lengths:
    """Row -> tokens in the forms both, caption and task; 0 for a form that it cannot have.

    Args:
        processor: of the model that is to train.
        limits: of the images, as in ingest.
    """

    def __init__(self, processor: Any, limits: ImageLimits) -> None:
        self.collator = Collator(processor, max_length=1 << 30, limits=limits, cache_bytes=0)
        self.chat = ChatFormat(
            self.collator.tokenizer,
            chat_template=getattr(processor, "chat_template", None),
            image_token=self.collator.image_token,
        )
        self.request = max(CAPTION_REQUESTS, key=lambda text: len(self.chat.text_ids(text)))

    def __call__(self, row: dict[str, Any]) -> tuple[int, int, int]:
        """``row`` has the columns of the catalog's source, ``turns`` if it is a replay row."""
        if row.get("turns") is not None:
            length = self._length(row, replayed_turns(json.loads(row["turns"]), row["image"] is not None))
            return length, length, length
        own = (row["caption_instruction"] or "").strip()
        asked = row | {"caption_instruction": own or self.request}
        forms = FORMS if row["tasked"] else ("caption",)
        found = {form: self._length(row, single_stage_turns(asked, form, seed=0, epoch=0)) for form in forms}
        return cast("tuple[int, int, int]", tuple(found.get(form, 0) for form in FORMS))

    def _length(self, row: dict[str, Any], turns: list[Turn]) -> int:
        try:
            return self.collator.length(
                conversation_example(self.chat, turns, "assistant", id=row["id"], image=row["image"])
            )
        except (ExampleRefused, ImageRefused):  # refused again, and recorded, when its turn comes
            return 1
