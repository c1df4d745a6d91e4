"""What a picture's true labels would teach: how much of a question type can be learnt here at all.

    python -m benchmarks.label_ceiling [TYPE] [--pairs N]       about four minutes on two cores; TYPE: "land areas"

Two networks are trained on the true answers of training chips, which the method never sees: the pocket base's vision
tower with a linear head over its patches, and a small convolutional network from nothing. Both answer the benchmark's
open questions of that type, and its yes/no questions: yes where what they find most likely is what is asked about.
Post-training learns the same from captions and tasks that tell it of a part of the chips, so it can hardly do better
than the first; what the second finds is in the pictures. ``--pairs`` takes the chips of a run's first N pairs as they
are, as a run has them, instead of every training chip turned and mirrored.
"""

from __future__ import annotations

import argparse
import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from adamllm_ray.evaluation.intervals import wilson_interval
from adamllm_ray.models.checkpoint import load_vlm, resolve_model
from adamllm_ray.pocket.chips import all_chips
from adamllm_ray.pocket.domain import NAMES, DomainQuestion, benchmark_questions, training_pairs
from adamllm_ray.pocket.tower import FEATURE_LAYER
from benchmarks.measure import finish, say

STEPS, BATCH = 800, 64
TURNED = ("side", "half")  # kinds whose answer turns with the picture
RARITY = 0.5  # 0: values as often as they are true, 1: every value as often
RATES = {"tower": 3e-4, "convolutional": 2e-3}
Examples = tuple[NDArray[np.uint8], NDArray[np.int64]]  # pictures (n, 60, 60, 3), numbers of their values (n,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("type", nargs="?", default="land areas", choices=sorted(set(NAMES.values())))
    parser.add_argument("--pairs", type=int, help="Of a run; every training chip, turned, if absent.")
    options = parser.parse_args()
    name: str = options.type
    questions = list(benchmark_questions())
    open_ones = [question for question in questions if question.type == name]
    closed_ones = [question for question in questions if question.type == f"{name}, yes/no"]
    values = open_ones[0].choices
    train = _training_chips(name, values, options.pairs)
    asked, answers = _pictures(open_ones), np.array([values.index(question.answer) for question in open_ones])
    turned = options.pairs is None and not any(of == name and kind in TURNED for (kind, _), of in NAMES.items())
    metrics: dict[str, Any] = {"type": name, "pairs": options.pairs, "training_chips": len(train[1])}
    metrics |= {"questions": len(open_ones), "yes_no_questions": len(closed_ones)}
    metrics["most_common_answer"] = _interval(max(Counter(answers.tolist()).values()), len(answers))
    for kind, make in (("tower", TowerHead), ("convolutional", _convolutional)):
        torch.manual_seed(0)
        network = trained(make(len(values)), RATES[kind], train, len(values), turns=8 if turned else 1)
        right = _most_likely(network, asked) == answers
        metrics[kind] = _interval(int(right.sum()), len(right))
        metrics[f"{kind}_by_answer"] = {
            value: round(float(right[answers == number].mean()), 3) for number, value in enumerate(values)
        }
        if closed_ones:
            right = _closed_right(network, closed_ones, values)
            metrics[f"{kind}_yes_no"] = _interval(int(right.sum()), len(right))
        say(f"{kind}: {metrics[kind]} {metrics[f'{kind}_by_answer']} yes/no {metrics.get(f'{kind}_yes_no')}")
    finish("label_ceiling", metrics)


def _training_chips(name: str, values: Sequence[str], pairs: int | None) -> Examples:
    """The chips that have a fact of this question type: of the first so many pairs, or all."""
    keys = None if pairs is None else {pair.key for pair in training_pairs(pairs)}
    chips = [chip for chip in all_chips("train") if keys is None or chip.key in keys]
    told = [(chip, fact) for chip in chips for fact in chip.facts if NAMES[fact.kind, fact.noun] == name]
    return np.stack([chip.pixels for chip, _ in told]), np.array([values.index(fact.value) for _, fact in told])


def _pictures(asked: Sequence[DomainQuestion]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(io.BytesIO(question.image_bytes)).convert("RGB")) for question in asked])


def _closed_right(network: nn.Module, asked: Sequence[DomainQuestion], values: Sequence[str]) -> NDArray[np.bool_]:
    """Which yes/no questions are answered right by whether what is named is what the network finds most likely."""
    named = [next(word for word in re.findall("[a-z]+", question.question) if word in values) for question in asked]
    found = _most_likely(network, _pictures(asked)) == np.array([values.index(value) for value in named])
    right: NDArray[np.bool_] = found == np.array([question.answer == "yes" for question in asked])
    return right


@torch.no_grad()
def _most_likely(network: nn.Module, pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = network(_inputs(pictures)).argmax(1).numpy()
    return found


def trained(network: nn.Module, rate: float, train: Examples, values: int, *, turns: int) -> nn.Module:
    """The network, trained.

    Args:
        turns: of how many ways to turn and mirror the pictures one is drawn for each batch.
    """
    random = np.random.default_rng(0)
    pictures, answers = train
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS)
    weights = np.bincount(answers, minlength=values)[answers] ** -RARITY
    weights /= weights.sum()
    for step in range(STEPS):
        chosen = random.choice(len(answers), BATCH, p=weights)
        batch, turn = pictures[chosen], int(random.integers(turns))
        batch = np.rot90(batch[:, :, ::-1] if turn >= 4 else batch, turn % 4, (1, 2))
        loss = nn.functional.cross_entropy(network(_inputs(batch)), torch.from_numpy(answers[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 199:
            say(f"step {step + 1}: loss {loss.item():.3f}")
    return network.eval()


class TowerHead(nn.Module):
    """The base model's vision tower, and one linear layer over the mean of what the projector would get."""

    def __init__(self, values: int) -> None:
        super().__init__()
        model, processor = load_vlm(resolve_model("pocket:base"), "float32")
        scale = processor.image_processor
        self.tower = model.model.vision_tower
        self.head = nn.Linear(self.tower.config.hidden_size, values)
        self.register_buffer("mean", torch.tensor(scale.image_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(scale.image_std)[:, None, None])

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits [batch, values] of pictures [batch, 3, 60, 60] between 0 and 1."""
        states = self.tower((pictures - self.mean) / self.std, output_hidden_states=True).hidden_states
        logits: Tensor = self.head(states[FEATURE_LAYER][:, 1:].mean(1))
        return logits


def _convolutional(values: int) -> nn.Module:
    """Seven layers of 3 x 3, three of them halving the picture, then its mean."""
    layers: list[nn.Module] = []
    before = 3
    for width, stride in ((24, 1), (32, 2), (48, 1), (64, 2), (64, 1), (96, 2), (96, 1)):
        layers += [nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, values))


def _inputs(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).float().div(255).permute(0, 3, 1, 2).contiguous()


def _interval(right: int, number: int) -> list[float]:
    one = wilson_interval(right, number)
    return [round(value, 3) for value in (one.value, one.lo, one.hi)]


if __name__ == "__main__":
    main()
