"""How many tokens each record has in each form, image tokens included, before anything is trained.

    measure = Lengths(processor, limits)
    tokens = measure(rows)              # [rows, 3]: both, caption, task

Batches are planned from these numbers by every worker alike. They are upper bounds: a caption's request is drawn anew
each epoch, so the longest one of the pool counts. No image is looked at: ingest has written down how large each is. A
text is tokenized once, thousands at a time in the tokenizer's own threads; what a conversation adds to its texts is
counted once for each shape of conversation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adamllm_ray.config import ConversationSection, ImageLimits
from adamllm_ray.data.images import upright_size
from adamllm_ray.errors import ImageRefused
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.training.collate import Collator
from adamllm_ray.training.conversations import replayed_turns
from adamllm_ray.training.wording import shipped_requests, task_texts

Counts = NDArray[np.int32]
TEXTS = ("caption", "caption_instruction", "instruction", "informative", "precise")
_FIRST = [Turn("user", "", image=True), Turn("assistant", "")]
_MORE = [Turn("user", ""), Turn("assistant", "")]


class Lengths:
    """Rows -> tokens in the forms both, caption and task; 0 for a form that it cannot have.

    1 stands for what will be refused, and recorded, when its turn comes.

    Args:
        processor: of the model that is to train.
        limits: of the images, as in ingest.
        wording: of the conversations, the configuration's defaults if absent.
        seed: that the wording is drawn with.
        ended: conversations get an end of text (the synthesizer objective).
    """

    def __init__(
        self,
        processor: Any,
        limits: ImageLimits,
        wording: ConversationSection | None = None,
        *,
        seed: int = 0,
        ended: bool = False,
    ) -> None:
        self.wording, self.seed, self.ended = wording or ConversationSection(), seed, ended
        self.collator = Collator(processor, max_length=1 << 30, limits=limits, cache_bytes=0)
        self.chat = ChatFormat(
            self.collator.tokenizer,
            chat_template=getattr(processor, "chat_template", None),
            image_token=self.collator.image_token,
        )
        pool = self.wording.caption_requests or shipped_requests()
        self.request = max(len(self.chat.text_ids(text)) for text in pool)
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
        tasked = rows["tasked"].to_numpy()
        known = [name for name in ("id", *TEXTS, "further") if name in rows.column_names]
        listed = rows.select(known).to_pylist()
        told = [
            task_texts(row, self.wording, seed=self.seed) if task else []
            for row, task in zip(listed, tasked, strict=True)
        ]
        tasks, answers, texts = self._told(told)
        own = [row["caption_instruction"] or "" for row in listed] if self.wording.caption_request == "record" else []
        requests = self._texts([text if text.strip() else "" for text in own] or [""] * len(listed))
        requests[requests == 0] = self.request
        captions, image = self._texts([row["caption"] for row in listed]), self._images(rows)
        more = self._shape([*_FIRST, *_MORE]) - self._shape(_FIRST)  # what one more pair of turns adds
        caption = np.where(captions > 0, self._shape(_FIRST) + requests + captions + image, 1)
        task = np.where(answers > 0, self._shape(_FIRST) + (tasks - 1) * more + texts + image, 1)
        both = self._shape(_FIRST) + tasks * more + requests + captions + texts + image
        found = np.stack([np.where(captions + answers > 0, both, 1), caption, task], axis=1)
        found[image < 0] = 1
        found[~tasked, 0] = found[~tasked, 2] = 0
        return found.astype(np.int32)

    def _told(self, told: Sequence[Sequence[tuple[str, str]]]) -> tuple[Counts, Counts, Counts]:
        """Per row: how many tasks, tokens of their assistant texts, tokens of all their texts."""
        pairs = [pair for row in told for pair in row]
        users, assistants = self._texts([user for user, _ in pairs]), self._texts([text for _, text in pairs])
        counts = np.array([len(row) for row in told], np.int32)
        which = np.repeat(np.arange(len(told)), counts)
        answers = np.bincount(which, assistants, len(told)).astype(np.int32)
        return counts, answers, answers + np.bincount(which, users, len(told)).astype(np.int32)

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
