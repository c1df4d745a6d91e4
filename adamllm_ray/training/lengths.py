"""How many tokens each record has in each form, image tokens included, before anything is trained.

    measure = Lengths(processor, limits)
    tokens = measure(rows)              # [rows, 3]: both, caption, task

Batches are planned from these numbers by every worker alike. They are upper bounds: a caption's request is drawn anew
each epoch, so the longest one counts. No image is looked at: ingest has written down how large each is. A text is
tokenized once, thousands at a time in the tokenizer's own threads; what a conversation adds to its texts is counted
once for each shape of conversation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adamllm_ray.config import ImageLimits
from adamllm_ray.data.images import upright_size
from adamllm_ray.errors import ImageRefused
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import CAPTION_REQUESTS, joined_answer, replayed_turns

Counts = NDArray[np.int32]
_CAPTION = [Turn("user", "", image=True), Turn("assistant", "")]
_BOTH = [*_CAPTION, Turn("user", ""), Turn("assistant", "")]


class Lengths:
    """Rows -> tokens in the forms both, caption and task; 0 for a form that it cannot have.

    1 stands for what will be refused, and recorded, when its turn comes.

    Args:
        processor: of the model that is to train.
        limits: of the images, as in ingest.
        ended: conversations get an end of text (the synthesizer objective).
    """

    def __init__(self, processor: Any, limits: ImageLimits, *, ended: bool = False) -> None:
        self.ended = ended
        self.collator = Collator(processor, max_length=1 << 30, limits=limits, cache_bytes=0)
        self.chat = ChatFormat(
            self.collator.tokenizer,
            chat_template=getattr(processor, "chat_template", None),
            image_token=self.collator.image_token,
        )
        self.request = max(len(self.chat.text_ids(text)) for text in CAPTION_REQUESTS)
        self._added: dict[tuple[int, int], int] = {}
        self._shapes: dict[tuple[tuple[str, bool], ...], int] = {}

    def __call__(self, rows: pa.Table) -> Counts:
        """``rows`` has the columns of a catalog's source: texts or, if they are replay rows, ``turns``."""
        return self._replayed(rows) if "turns" in rows.column_names else self._recorded(rows)

    def size(self, image: bytes | None) -> tuple[int, int] | tuple[None, None]:
        """(width, height) off an image's header, None for one that would be refused."""
        try:
            return upright_size(image or b"", self.collator.limits)
        except ImageRefused:
            return None, None

    def _recorded(self, rows: pa.Table) -> Counts:
        texts = {name: rows[name].to_pylist() for name in ("caption", "instruction", "informative", "precise")}
        tasked = rows["tasked"].to_numpy()
        own = [text if text and text.strip() else "" for text in rows["caption_instruction"].to_pylist()]
        pairs = zip(tasked, texts["informative"], texts["precise"], strict=True)
        answers = self._texts([joined_answer(one or "", two or "") if task else "" for task, one, two in pairs])
        asked = self._texts(
            [text or "" if task else "" for task, text in zip(tasked, texts["instruction"], strict=True)]
        )
        captions = self._texts(texts["caption"])
        requests = self._texts(own)
        requests[np.array([not text for text in own], np.bool_)] = self.request
        image = self._images(rows)
        caption = np.where(captions > 0, self._shape(_CAPTION) + requests + captions + image, 1)
        task = np.where(answers > 0, self._shape(_CAPTION) + asked + answers + image, 1)
        both = self._shape(_BOTH) + requests + captions + asked + answers + image
        found = np.stack([np.where(captions + answers > 0, both, 1), caption, task], axis=1)
        found[image < 0] = 1
        found[~tasked, 0] = found[~tasked, 2] = 0
        return found.astype(np.int32)

    def _replayed(self, rows: pa.Table) -> Counts:
        sizes, image = rows["width"].to_pylist(), self._images(rows)
        talks = [
            replayed_turns(json.loads(text), width is not None)
            for text, width in zip(rows["turns"].to_pylist(), sizes, strict=True)
        ]
        lengths = self._texts([turn.text for talk in talks for turn in talk])
        ends = np.cumsum([0, *map(len, talks)])
        sums = np.add.reduceat(np.append(lengths, 0), ends[:-1]) if talks else np.zeros(0)
        shapes = np.array([self._shape(talk) for talk in talks], np.int64)
        found = shapes + sums + np.where([width is not None for width in sizes], image, 0) + self.ended
        return np.repeat(found.astype(np.int32)[:, None], 3, axis=1)

    def _texts(self, texts: Sequence[str]) -> Counts:
        return np.array(self.chat.text_lengths(texts), np.int32)

    def _shape(self, turns: Sequence[Turn]) -> int:
        """Tokens of a conversation whose texts are empty."""
        key = tuple((turn.role, turn.image) for turn in turns)
        if key not in self._shapes:
            self._shapes[key] = len(self.chat.encode([Turn(turn.role, "", turn.image) for turn in turns]).ids)
        return self._shapes[key]

    def _images(self, rows: pa.Table) -> Counts:
        """Tokens that each image adds to its placeholder; -1 for one whose size is not known."""
        sides = [rows[name].fill_null(-1).to_numpy().astype(np.int64) for name in ("width", "height")]
        sizes, which = np.unique(np.stack(sides, axis=1), axis=0, return_inverse=True)
        added = [self._image(width, height) if width > 0 else -1 for width, height in sizes.tolist()]
        return np.array(added, np.int32)[which.reshape(-1)]

    def _image(self, width: int, height: int) -> int:
        if (width, height) not in self._added:
            self._added[width, height] = self.collator.image_tokens((width, height)) - 1
        return self._added[width, height]
