"""Small seed files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adamllm_ray.config.seed import SeedSection
from tests.training.conftest import picture

Records = dict[str, list[Any]]


def talk(*texts: str) -> list[dict[str, str]]:
    """Messages, the user first."""
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def records(count: int, task: str = "shapes") -> Records:
    """Sound files: per image a caption and one question with both answers."""
    made: Records = {"captions": [], "precise": [], "informative": []}
    for number in range(count):
        name = f"{number}.png"
        made["captions"].append({"image": f"allava/images/{name}", "caption": f"caption {number}"})
        question = f"<image>\nWhat is {number}?"
        made["precise"].append({"image": name, "task_name": task, "conversations": talk(question, f"p{number}")})
        made["informative"].append({"image": f"x/{name}", "conversations": talk(question, f"informative {number}.")})
    return made


def write(folder: Path, made: Records, **section: Any) -> SeedSection:
    """The files and their section; pictures are in ``folder``."""
    for name, listed in made.items():
        (folder / f"{name}.json").write_text(json.dumps(listed))
    paths = {name: str(folder / f"{name}.json") for name in made}
    return SeedSection.model_validate(paths | section)


def pictures(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))
