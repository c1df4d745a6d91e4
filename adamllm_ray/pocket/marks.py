"""Pictures as a language model would like to see them: every image token the sum of the words that are true there.

A patch of a picture has a colour, and its region a side, a number of parts and so on. A *mark* is the sum of the
embeddings of those words, and stands where the image token of the patch will be. The language model learns to read
marks before there is a tower that makes any: binding (the red area is the one on the left) is learnt there, in minutes
and without a picture. Then tower and projector learn to make tokens like these (`tower.WordAlignment`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adamllm_ray.config import TrainingSection
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.pocket import language, painting, regions, world
from adamllm_ray.pocket.architecture import IMAGE, IMAGE_SIDE, PAD, Size
from adamllm_ray.pocket.language import Fact
from adamllm_ray.synthesis.prompts import CAPTION_REQUEST
from adamllm_ray.training.collate import PAD_MULTIPLE, Batch
from adamllm_ray.training.conversations import IGNORE, conversation_example

GRID = IMAGE_SIDE // Size().patch  # patches a side
PICTURES = 20_000
HELD_OUT = 1_000_000  # pictures from this number on are never trained on
Labels = NDArray[np.int64]
WORDS: dict[str, tuple[str, ...]] = {
    "colour": tuple(painting.COLOURS),
    "side": regions.SIDES,
    "count": regions.NUMBERS,
    "island": ("yes", "no"),
    "share": regions.SHARES,
    "pattern": painting.PATTERNS,
    "light": ("none", "above", "below", "leftward", "rightward"),  # the brighter half; "left" is a word of sides
}
LIGHTS = dict(zip(language.HALVES, WORDS["light"][1:], strict=True))
KINDS = {"side": "side", "count": "number", "island": "island", "share": "much", "type": "type", "half": "half"}
LOOKUPS = 28  # per example of recall
QUESTIONS = 10
TEXT_SHARE, MADE_UP_SHARE = 0.4, 0.3  # of the examples; the rest are general pictures


@dataclass(frozen=True, slots=True)
class Marked:
    """Token ids with every image token in place, labels, and the word ids of each image token (-1: no word)."""

    ids: list[int]
    labels: list[int]
    marks: list[list[int]]


Maker = Callable[[Random, float], Marked]


class MarkReader(nn.Module):
    """A VLM's language model, given marks instead of image features."""

    def __init__(self, vlm: Any) -> None:
        super().__init__()
        self.language_model, self.lm_head = vlm.model.language_model, vlm.lm_head
        self.row_end = vlm.model.image_newline

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, marks: Tensor, logits_to_keep: Tensor, use_cache: bool = False
    ) -> SimpleNamespace:
        """Logits [batch, kept, words].

        Args:
            input_ids, attention_mask: [batch, tokens].
            marks: [image tokens of the batch, heads] of word ids, -1 for none; without any word, the end of a row.
            logits_to_keep: positions.
        """
        embeddings = self.language_model.embed_tokens(input_ids)
        if len(marks):
            stated = (marks >= 0)[..., None]
            words = self.language_model.embed_tokens(marks.clamp(min=0))
            tokens = torch.where(stated.any(1), (words * stated).sum(1), self.row_end)
            embeddings = embeddings.masked_scatter((input_ids == IMAGE)[..., None], tokens)
        states = self.language_model(
            inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=use_cache
        ).last_hidden_state
        return SimpleNamespace(logits=self.lm_head(states[:, logits_to_keep]))


class MarkSchool:
    """Makers of examples with marks, and of text, for one tokenizer."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat = chat
        self._ids: dict[str, int] = {}
        self.words = {head: [word_id(chat.tokenizer, word) for word in words] for head, words in WORDS.items()}

    def recall(self, random: Random, done: float) -> Marked:
        """Look-ups, as dense as can be: a kind, a noun, and the value, which alone carries the loss."""
        if random.random() < TEXT_SHARE:
            facts = world.paired_facts(random, 1 if done < 0.3 else 2)
            return self._looked_up(self.chat.text_ids(language.caption_and_task(facts, random)[0]), [], facts, random)
        marks, facts = self._made_up(random, random.randint(2, 4))
        return self._looked_up([IMAGE] * len(marks), marks, facts, random)

    def questions(self, random: Random, done: float) -> Marked:
        """Questions in words: about the marks of a general picture, of a made-up one, or about sentences."""
        kind = random.random()
        if kind < TEXT_SHARE:
            facts = world.text_facts(random)
            caption, _ = language.caption_and_task(facts, random)
            return self._asked([Turn("user", CAPTION_REQUEST), Turn("assistant", caption)], [], facts, random)
        if kind < TEXT_SHARE + MADE_UP_SHARE:
            return self._asked([], *self._made_up(random, 2), random)
        labels, seen = labelled(random.randrange(PICTURES))
        return self._asked([], self._layout(self._words_of(labels)), list(seen), random)

    def _made_up(self, random: Random, nouns: int) -> tuple[list[list[int]], list[Fact]]:
        """Marks of a picture of so many colours, patch by patch at random, and what is true of it."""
        facts = world.colour_facts(random, nouns)
        colours = list({fact.noun: None for fact in facts if fact.noun in painting.COLOURS})
        patches = [random.choice(colours) for _ in range(GRID * GRID)]
        common = {"light": "none"}
        for fact in facts:
            if fact.kind in ("type", "half"):
                common |= {"pattern": fact.value} if fact.kind == "type" else {"light": _brighter(fact)}
        told = {
            colour: {"colour": colour} | common | {fact.kind: fact.value for fact in facts if fact.noun == colour}
            for colour in colours
        }
        marks = [self._mark(told[colour]) for colour in patches]
        return self._layout(marks), [f for f in facts if f.noun not in painting.COLOURS or f.noun in patches]

    def _mark(self, said: dict[str, str]) -> list[int]:
        return [self.words[head][values.index(said[head])] if head in said else -1 for head, values in WORDS.items()]

    def _words_of(self, labels: Labels) -> list[list[int]]:
        heads = list(self.words.values())
        return [[-1 if v == IGNORE else heads[n][v] for n, v in enumerate(row)] for row in labels.tolist()]

    def _layout(self, patches: list[list[int]]) -> list[list[int]]:
        """Marks of all image tokens from those of the patches: base view, then the tile with its row ends."""
        empty = [-1] * len(self.words)
        rows = [patches[row * GRID : (row + 1) * GRID] for row in range(GRID)]
        return [*patches, *[mark for row in rows for mark in (*row, empty)]]

    def _looked_up(self, given: list[int], marks: list[list[int]], facts: list[Fact], random: Random) -> Marked:
        start = self.chat.tokenizer.bos_token_id
        ids = [start, *given]
        labels = [IGNORE] * len(ids)
        for fact in random.choices(facts, k=LOOKUPS):
            [value] = self.chat.text_ids(fact.value)
            ids += [self._word(KINDS[fact.kind]), self._word(fact.noun), value]
            labels += [IGNORE, IGNORE, value]
        return Marked(ids, labels, marks)

    def _word(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = word_id(self.chat.tokenizer, word)
        return self._ids[word]

    def _asked(self, before: list[Turn], marks: list[list[int]], facts: list[Fact], random: Random) -> Marked:
        turns = list(before)
        for fact in world.asked_about(facts, QUESTIONS, random):
            question = language.any_question(fact, random)
            turns += [Turn("user", question.text), Turn("assistant", question.precise)]
        if marks:
            turns[0] = Turn("user", turns[0].text, image=True)
        example = conversation_example(self.chat, turns, "assistant")
        ids, labels = example.ids, example.labels
        if before:
            start = self.chat.encode(before).turns[1].stop
            labels = [IGNORE] * start + labels[start:]
        if marks:
            at = ids.index(IMAGE)
            ids = [*ids[:at], *[IMAGE] * len(marks), *ids[at + 1 :]]
            labels = [*labels[:at], *[IGNORE] * len(marks), *labels[at + 1 :]]
        return Marked(ids, labels, marks)


def word_id(tokenizer: Any, word: str) -> int:
    """The token of a word inside a sentence."""
    found: list[int] = tokenizer.encode(f" {word}", add_special_tokens=False)
    return found[0]


class MarkSteps:
    """A `BatchSource` of examples with marks, each made from the number of its step."""

    def __init__(self, name: str, maker: Maker, section: TrainingSection, steps: int) -> None:
        self.name, self.maker, self.section, self.steps = name, maker, section, steps

    def load(self, step: int) -> list[Batch]:
        """The one micro-batch of a step."""
        random = Random(f"{self.name}-{step}")
        return [mark_batch([self.maker(random, step / self.steps) for _ in range(self.section.global_batch)])]


def mark_batch(examples: Sequence[Marked]) -> Batch:
    """What `MarkReader` takes."""
    longest = max(len(example.ids) for example in examples)
    width = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
    ids = torch.tensor([example.ids + [PAD] * (width - len(example.ids)) for example in examples])
    labels = torch.tensor([example.labels + [IGNORE] * (width - len(example.ids)) for example in examples])
    lengths = torch.tensor([len(example.ids) for example in examples])
    mask = (torch.arange(width)[None, :] < lengths[:, None]).long()
    marks = [mark for example in examples for mark in example.marks]
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "marks": torch.tensor(marks, dtype=torch.long).reshape(-1, len(WORDS)),
    }
    return Batch(inputs, float((labels != IGNORE).sum()))


def _brighter(fact: Fact) -> str:
    """The light's word for a fact that says which half is brighter, or darker."""
    return LIGHTS[fact.value if fact.noun == "brighter" else language.OPPOSITE[fact.value]]


@lru_cache(maxsize=2 * PICTURES)
def labelled(number: int) -> tuple[Labels, tuple[Fact, ...]]:
    """(labels of the patches, facts) of a general picture."""
    made = world.picture(number)
    return patch_labels(made), made.facts


def patch_labels(picture: world.Picture) -> Labels:
    """[patches, heads] of value numbers; a patch belongs to the region that covers most of it."""
    size = IMAGE_SIDE // GRID
    front = picture.mask.reshape(GRID, size, GRID, size).mean((1, 3)).flatten() > 0.5
    labels = np.full((GRID * GRID, len(WORDS)), IGNORE, np.int64)
    for inside, colour, mask in ((front, picture.front, picture.mask), (~front, picture.back, ~picture.mask)):
        alone = regions.island(mask)
        said = {
            "colour": colour,
            "side": regions.side(mask),
            "count": regions.count(mask),
            "island": None if alone is None else "yes" if alone else "no",
            "share": regions.share(mask),
            "pattern": next(fact.value for fact in picture.facts if fact.noun == "pattern"),
            "light": LIGHTS[picture.light] if picture.light else "none",
        }
        for number, (name, values) in enumerate(WORDS.items()):
            if (value := said[name]) is not None:
                labels[inside, number] = values.index(value)
    return labels
