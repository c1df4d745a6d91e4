"""Seed files of the pocket world, in the layout of the real ones: captions, precise answers, informative answers.

    adamllm pocket seed runs/seed --images 2000

General pictures with templated captions, one question per picture with both answers. Nothing here has seen a
satellite chip; it is what a synthesizer is tuned on in the examples and tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from adamllm_ray.pocket import language
from adamllm_ray.pocket.curriculum import picture
from adamllm_ray.synthesis.prompts import CAPTION_REQUEST


def write_seed(folder: Path, images: int) -> dict[str, str]:
    """Write the three files and the pictures below ``folder``. Returns the paths, keyed as the section `seed` is."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    made: dict[str, list[dict[str, Any]]] = {"captions": [], "precise": [], "informative": []}
    for number in range(images):
        data, facts = picture(number)
        name, random = f"{number:06d}.png", Random(number)
        (folder / "images" / name).write_bytes(data)
        caption, task = language.caption_and_task(list(facts[:4]), random)
        told = {"image": name, "caption": caption, "conversations": _talk(CAPTION_REQUEST, caption)}
        made["captions"].append(told)
        made["precise"].append(
            {"image": name, "task_name": facts[0].kind, "conversations": _talk(task.text, task.precise)}
        )
        made["informative"].append({"image": name, "conversations": _talk(task.text, task.informative)})
    for kind, records in made.items():
        (folder / f"{kind}.json").write_text(json.dumps(records))
    return {kind: str(folder / f"{kind}.json") for kind in made} | {"image_folder": str(folder / "images")}


def _talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
