"""What the vision tower of a pocket base says of satellite chips, which it has never seen, and what confuses it.

    python -m benchmarks.tower_unseen [MODEL]        a minute; MODEL: pocket:base or a folder

Each patch of a picture is read for the words that it stands for (`tower.WordAlignment`). Those of the patches that
are land (for the side: water) vote, and the value with most is held against the benchmark's answer. Asked twice: about
the chips, and about their masks in two flat colours, each the mean of its region; and how often each word is right of
the patches of general pictures, of the kind that it was trained on. Where the second is much better the
tower takes light and shade for shapes; where neither is good it does not see the shape. No model is trained here, so
this tells within a minute what an adapted model can hope for.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adamllm_ray.models.checkpoint import load_vlm, resolve_model
from adamllm_ray.pocket.chips import all_chips
from adamllm_ray.pocket.domain import NAMES, DomainQuestion, benchmark_questions
from adamllm_ray.pocket.marks import GRID, WORDS
from adamllm_ray.pocket.painting import Pixels
from adamllm_ray.pocket.tower import WordAlignment, held_out
from benchmarks.measure import finish, say

TYPES = {name: kind_noun for kind_noun, name in NAMES.items() if kind_noun[0] in ("side", "count", "island", "share")}
BATCH = 256
KEY = "r0000c0000"  # a question's id begins with the key of its chip


def main() -> None:
    model, processor = load_vlm(resolve_model(sys.argv[1] if len(sys.argv) > 1 else "pocket:base"), "float32")
    reader = WordAlignment(model.eval(), processor.tokenizer)
    scale = processor.image_processor
    mean, std = (torch.tensor(one)[:, None, None] for one in (scale.image_mean, scale.image_std))
    asked: dict[str, list[DomainQuestion]] = {name: [] for name in TYPES}
    for question in benchmark_questions():
        if question.type in TYPES:
            asked[question.type].append(question)
    chips = {chip.key: chip for chip in all_chips("test")}
    metrics: dict[str, Any] = {"patches_of_general_pictures": held_out(reader)}
    say(f"patches of general pictures: {metrics['patches_of_general_pictures']}")
    for name, questions in asked.items():
        kind, noun = TYPES[name]
        shown_in = [chips[one.id[: len(KEY)]] for one in questions]
        masks, pixels = np.stack([chip.land for chip in shown_in]), np.stack([chip.pixels for chip in shown_in])
        truth = np.array([WORDS[kind].index(one.answer) for one in questions])
        right = {}
        for shown, pictures in (("chips", pixels), ("flat", flat(pixels, masks))):
            inputs = (torch.from_numpy(pictures).float().div(255).permute(0, 3, 1, 2) - mean) / std
            scores = said(reader, inputs, list(WORDS).index(kind))
            right[shown] = voted(scores, masks if noun == "land" else ~masks) == truth
        metrics[name] = {
            "questions": len(truth),
            **{shown: round(float(found.mean()), 3) for shown, found in right.items()},
            "chips_by_answer": {
                value: round(float(right["chips"][truth == number].mean()), 2)
                for number, value in enumerate(WORDS[kind])
                if (truth == number).any()
            },
        }
        say(f"{name}: {metrics[name]}")
    finish("tower_unseen", metrics)


def said(reader: WordAlignment, inputs: torch.Tensor, head: int) -> NDArray[np.float32]:
    """[pictures, patches, values]: log probabilities of a head's values."""
    with torch.no_grad():
        parts = [reader.logits(part)[head].log_softmax(-1) for part in inputs.split(BATCH)]
    found: NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def voted(scores: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[pictures]: the value that the region's patches are for, each as much as the region covers it.

    A region that covers half of no patch is read off the patch that has most of it.
    """
    size = masks.shape[1] // GRID
    covered = masks.reshape(-1, GRID, size, GRID, size).mean((2, 4)).reshape(len(masks), -1)
    votes = np.where(covered > 0.5, covered, 0)
    none = ~votes.any(1)
    votes[none] = covered[none] == covered[none].max(1, keepdims=True)
    found: NDArray[np.int64] = (scores * votes[..., None]).sum(1).argmax(1)
    return found


def flat(chips: NDArray[np.uint8], masks: NDArray[np.bool_]) -> Pixels:
    """The masks in two colours: the means of their chip's land and water."""
    painted = np.empty_like(chips)
    for chip, mask, target in zip(chips, masks, painted, strict=True):
        for region in (mask, ~mask):
            if region.any():
                target[region] = chip[region].mean(0)
    return painted


if __name__ == "__main__":
    main()
