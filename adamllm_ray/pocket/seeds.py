"""Seed files of the pocket world, in the layout of the real ones: captions, precise answers, informative answers.

    adamllm pocket seed runs/seed --images 2000

General pictures with templated captions, one question per picture with both answers. Nothing here has seen a
satellite chip; it is what a synthesizer is tuned on in the examples and tests. Every second caption knows more than its
picture shows: it calls what it sees by other names, at random, so that a synthesizer has to read it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from adamllm_ray.pocket import language, painting, world
from adamllm_ray.pocket.curriculum import picture
from adamllm_ray.pocket.language import Fact
from adamllm_ray.synthesis.prompts import CAPTION_REQUEST


def write_seed(folder: Path, images: int) -> dict[str, str]:
    """Write the three files and the pictures below ``folder``. Returns the paths, keyed as the section `seed` is."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    made: dict[str, list[dict[str, Any]]] = {"captions": [], "precise": [], "informative": []}
    for number in range(images):
        data, facts = picture(number)
        name, random = f"{number:06d}.png", Random(number)
        (folder / "images" / name).write_bytes(data)
        told = list(facts[:4]) if number % 2 else renamed(facts[:4], random)
        caption, task = language.caption_and_task(told, random, language.VAGUE)
        made["captions"].append({"image": name, "caption": caption, "conversations": _talk(CAPTION_REQUEST, caption)})
        made["precise"].append(
            {"image": name, "task_name": facts[0].kind, "conversations": _talk(task.text, task.precise)}
        )
        made["informative"].append({"image": name, "conversations": _talk(task.text, task.informative)})
    for kind, records in made.items():
        (folder / f"{kind}.json").write_text(json.dumps(records))
    return {kind: str(folder / f"{kind}.json") for kind in made} | {"image_folder": str(folder / "images")}


def renamed(facts: Sequence[Fact], random: Random) -> list[Fact]:
    """The facts with another noun for each colour, another adjective, and another type of something."""
    nouns = random.sample([noun for noun in world.NOUNS if noun not in painting.COLOURS], len(painting.COLOURS))
    names = dict(zip(painting.COLOURS, nouns, strict=True))
    name = random.choice(list(world.TYPES))
    told = []
    for fact in facts:
        if fact.kind == "type":
            told.append(language.type_of(name, random.choice(world.TYPES[name]), world.TYPES[name]))
        elif fact.kind == "half":
            told.append(language.half(random.choice(world.ADJECTIVES), fact.value))
        else:
            told.append(replace(fact, noun=names[fact.noun]))
    return told


def _talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
