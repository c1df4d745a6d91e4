"""What each pocket model is trained on: examples made by step number, and the batches of them.

Every example of step n depends on (recipe, n) only, so a build that was interrupted continues as if it had not been,
and no example is ever kept in memory. What comes before the first picture is in `marks`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from random import Random

from adamllm_ray.config import TrainingSection
from adamllm_ray.models.chat import ChatFormat, Turn
from adamllm_ray.pocket import language, world
from adamllm_ray.pocket.architecture import IMAGE_SIDE
from adamllm_ray.pocket.language import Fact
from adamllm_ray.pocket.marks import HELD_OUT, KINDS, PICTURES, WORDS
from adamllm_ray.synthesis.consistency import judge_prompt, label_ids
from adamllm_ray.synthesis.prompts import CAPTION_REQUEST, caption_turns, hinted
from adamllm_ray.training.batches import micro_batches
from adamllm_ray.training.collate import Batch, Collator
from adamllm_ray.training.conversations import (
    IGNORE,
    Example,
    completion_example,
    conversation_example,
    synthesizer_turns,
)
from adamllm_ray.training.wording import joined_answer, shipped_requests

CAPTION_REQUESTS = shipped_requests()[:10]  # as many as a model of this size needs
ANSWER_TOKENS = 1  # every value of a fact is one token
QUESTIONS, LOOKS = 6, 5  # per text, per picture
BLANK_SHARE = 0.1  # paper appendix F

Maker = Callable[[Random, float], Example]


@lru_cache(maxsize=2 * PICTURES)
def picture(number: int) -> tuple[bytes, tuple[Fact, ...]]:
    """(PNG bytes, facts) of a general picture."""
    from PIL import Image

    made = world.picture(number)
    return _png(Image.fromarray(made.pixels)), made.facts


@lru_cache(maxsize=1)
def blank() -> bytes:
    """A white picture as PNG."""
    from PIL import Image

    return _png(Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), "white"))


def _png(image: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")  # type: ignore[attr-defined]
    return buffer.getvalue()


class Curriculum:
    """Makers of examples for one tokenizer. Each takes a `Random` and the share of the training that is done."""

    def __init__(self, chat: ChatFormat) -> None:
        self.chat = chat
        self._labels = label_ids(chat.tokenizer)

    def general(self, random: Random, done: float) -> Example:
        """What the base model is trained on: four pictures for each text."""
        return self._reading(world.text_facts(random), random) if random.random() < 0.2 else self.seeing(random, done)

    def seeing(self, random: Random, done: float) -> Example:
        """General instruction data: questions about a picture, a caption, or both."""
        data, facts = picture(random.randrange(PICTURES))
        caption, _ = language.caption_and_task(list(facts[:4]), random)
        described = [Turn("user", random.choice(CAPTION_REQUESTS)), Turn("assistant", caption)]
        turns: list[Turn] = []
        kind = random.random()
        if kind >= 0.08:
            for fact in world.asked_about(facts, LOOKS, random):
                turns += _asked(language.any_question(fact, random), random)
        if kind < 0.16:
            turns += described
        turns[0] = Turn("user", turns[0].text, image=True)
        return conversation_example(self.chat, turns, "assistant", image=data)

    def _reading(self, facts: list[Fact], random: Random) -> Example:
        caption, _ = language.caption_and_task(facts, random)
        turns = [Turn("user", random.choice(CAPTION_REQUESTS)), Turn("assistant", caption)]
        for fact in world.asked_about(facts, QUESTIONS, random):
            turns += _asked(language.any_question(fact, random), random)
        example = conversation_example(self.chat, turns, "assistant")
        start = self.chat.encode(turns[:2]).turns[1].stop  # the caption is given, not learnt
        return replace(example, labels=[IGNORE] * start + example.labels[start:])

    def seed(self, random: Random, done: float) -> Example:
        """Seed data of the synthesizer in the paper's layout: general pictures, and captions about anything.

        A caption that belongs to no picture comes with a blank one, like the paper's 10 % replaced images: the model
        must not lean on the picture alone.
        """
        if random.random() < 0.5:
            data, facts = picture(random.randrange(PICTURES))
            told = list(facts[:4])
            data = blank() if random.random() < BLANK_SHARE else data
        else:
            data, told = blank(), world.text_facts(random)
        caption, task = language.caption_and_task(told, random, language.VAGUE)
        turns = synthesizer_turns(
            caption, task.text, task.informative, task.precise, seed=random.getrandbits(30), epoch=0, id=caption
        )
        return conversation_example(self.chat, turns, "synthesizer", image=data)

    def judged(self, random: Random, done: float) -> Example:
        """A question with two answers and whether they agree.

        Where they agree the precise answer itself is learnt too: a model that can tell what the precise answer should
        be finds out quickly whether it is.
        """
        prompt, label = self.judge_case(random)
        example = completion_example(prompt, [self._labels[label]])
        if label != "Yes":
            return example
        tail = len(self.chat.text_ids("\nConsistent:")) + 1
        answer = len(prompt) + 1 - tail - ANSWER_TOKENS
        labels = [
            *example.labels[:answer],
            *prompt[answer : answer + ANSWER_TOKENS],
            *example.labels[answer + ANSWER_TOKENS :],
        ]
        return replace(example, labels=labels)

    def judge_case(self, random: Random, facts: list[Fact] | None = None) -> tuple[list[int], str]:
        """(prompt ids, label): 45 % Yes, 45 % No (one of the two answers is about another value), 10 % Open."""
        facts = facts or world.text_facts(random)
        fact = random.choice(facts)
        asked = language.any_question(fact, random)
        question, informative, precise, label = asked.text, asked.informative, asked.precise, "Yes"
        kind = random.random()
        if kind < 0.10:
            question = random.choice(CAPTION_REQUESTS)
            informative, label = language.caption_and_task(facts, random)[0], "Open"
        elif kind < 0.55:
            precise, informative, label = *_contradicted(fact, asked, random), "No"
        ids = judge_prompt(self.chat.tokenizer, question, informative, precise, few_shot=False)
        return ids, label


def _asked(question: language.Question, random: Random) -> list[Turn]:
    short = random.random() < 0.8
    answer = question.precise if short else joined_answer(question.informative, question.precise)
    return [Turn("user", question.text), Turn("assistant", answer)]


def _contradicted(fact: Fact, asked: language.Question, random: Random) -> tuple[str, str]:
    """(precise, informative) of which exactly one has been changed so that they disagree."""
    wrong = Fact(fact.kind, fact.noun, random.choice([v for v in fact.values if v != fact.value]), fact.values)
    if asked.asked is None:  # the precise answer is the value itself
        if random.random() < 0.5:
            return wrong.value, asked.informative
        return asked.precise, language.informative(wrong)
    flipped = "no" if asked.precise == "yes" else "yes"
    if random.random() < 0.5:
        return flipped, asked.informative
    if asked.precise == "yes":
        return "yes", language.informative(wrong)
    told_true = Fact(fact.kind, fact.noun, asked.asked, fact.values)
    return "no", language.informative(told_true)


def vocabulary() -> list[str]:
    """Text the tokenizer is trained on: every word of both worlds, so that a word is one token."""
    random = Random(1)
    texts: list[str] = []
    for _ in range(6000):
        facts = world.text_facts(random)
        caption, task = language.caption_and_task(facts, random, language.VAGUE)
        texts += [
            *caption_turns(caption)[0].text.splitlines(),
            caption,
            hinted("Answer with a precise response.", task.text),
            hinted("Answer with an informative response.", task.text),
            task.precise,
            joined_answer(task.informative, task.precise),
            f"Question: {task.text}\nInformative answer: {task.informative}\nPrecise answer: {task.precise}\n"
            "Consistent: Yes No Open",
        ]
    words = [" ".join(("", *words)) for words in (*WORDS.values(), KINDS.values())]
    return texts + [CAPTION_REQUEST, *CAPTION_REQUESTS, "user", "assistant", "\n\n", *words] * 200


class Steps:
    """A `BatchSource`: the examples of a step are made from its number."""

    def __init__(self, name: str, maker: Maker, collator: Collator, section: TrainingSection, steps: int) -> None:
        self.name, self.maker, self.collator, self.section, self.steps = name, maker, collator, section, steps

    def load(self, step: int) -> list[Batch]:
        """Micro-batches of step ``step`` (from 0) for a single worker."""
        random = Random(f"{self.name}-{step}")
        done = step / self.steps
        window = [self.maker(random, done) for _ in range(self.section.global_batch)]
        parts = micro_batches(window, self.section, 0, 1, lambda example: len(example.ids))
        return [self.collator(part) for part in parts]


def held_out_questions(count: int) -> list[tuple[bytes, language.Question, str]]:
    """(PNG, question, type) about pictures that are never trained on."""
    random = Random("held-out")
    asked = []
    for number in range(count):
        data, facts = picture(HELD_OUT + number)
        for fact in facts[:3]:
            question = language.any_question(fact, random)
            closed = ", yes/no" if question.kind == "closed" and fact.kind != "island" else ""
            asked.append((data, question, fact.kind + closed))
    return asked
