"""`seed.compat: official`: order, blank images and split as the paper's data step draws them, so that counts compare.

It draws by position: the turns of the n-th usable image with a generator seeded n, and a blank for the i-th image of
each task with one seeded i, so that the same places (31, 32, 43, 49, 55, 57, ...) are blank in every task and 11 % of
900 images are, not 10. Within a task images are shuffled, nine tenths train, and the rest is the development split.
Written from the paper's dossier; the algorithm of the shuffle is Python's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.training.seed.joining import Draws, Texts, conversation, hinted_pairs, usable
from adamllm_ray.training.seed.records import SeedImage

BLANK_SHARE, TRAIN_SHARE, GROUP_SEED = 0.1, 0.9, 42
BLANK_SIZE = (237, 150)  # pixels of its one white picture, a JPEG


def official_draws(images: Mapping[str, SeedImage]) -> dict[str, Draws]:
    """The draws of every image that has both kinds of answers, by name."""
    turns: dict[str, Texts] = {}
    tasks: dict[str, list[str]] = {}
    for name, image in images.items():
        if usable(image, "image") is not Verdict.OK:
            continue
        pairs = hinted_pairs(image)
        Random(len(turns)).shuffle(pairs)
        turns[name] = conversation(image.caption, pairs)
        tasks.setdefault(image.task, []).append(name)
    found = {}
    for group in tasks.values():
        Random(GROUP_SEED).shuffle(group)
        train = int(TRAIN_SHARE * len(group))
        for place, name in enumerate(group):
            found[name] = Draws(turns[name], Random(place).random() < BLANK_SHARE, place >= train)
    return found
