"""Warm-up of the pocket vision tower: every patch learns to say what region it belongs to, and what is true of it.

One linear layer per patch reads, off the features that the projector will get, the patch's colour and its region's
side, number of parts, whether it is an island, how much it covers, and the picture's pattern and light. So a language
model can look an answer up by colour, the way it looks a word up in a caption. It stands in for the pretraining that a
real tower comes with; only general pictures are used, and the heads are thrown away.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adamllm_ray.pocket import language, regions, world
from adamllm_ray.pocket.architecture import IMAGE_SIDE
from adamllm_ray.pocket.curriculum import HELD_OUT, PICTURES
from adamllm_ray.training.collate import Batch
from adamllm_ray.training.conversations import IGNORE

FEATURE_LAYER = -2  # the layer LLaVA-NeXT reads (vision_feature_layer)
BATCH = 128
HEADS: dict[str, tuple[str, ...]] = {
    "colour": tuple(world.COLOURS),
    "side": regions.SIDES,
    "count": regions.NUMBERS,
    "island": ("yes", "no"),
    "share": regions.SHARES,
    "pattern": world.PATTERNS,
    "light": ("none", *language.HALVES),
}
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # CLIP's, as in the image processor
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
Labels = NDArray[np.int64]


class TowerWarmup(nn.Module):
    """A vision tower and one linear head per patch for every entry of HEADS."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        config: Any = tower.config
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.heads = nn.ModuleDict({name: nn.Linear(config.hidden_size, len(values)) for name, values in HEADS.items()})

    def forward(self, pixel_values: Tensor, targets: Tensor) -> SimpleNamespace:
        """Sum over heads of the mean cross entropy.

        Args:
            pixel_values: [batch, 3, 60, 60].
            targets: [batch, patches, heads], IGNORE where there is nothing to say.
        """
        losses = [
            nn.functional.cross_entropy(logits.flatten(0, 1), targets[..., number].flatten(), ignore_index=IGNORE)
            for number, logits in enumerate(self._logits(pixel_values))
        ]
        return SimpleNamespace(loss=torch.stack(losses).sum())

    def _logits(self, pixel_values: Tensor) -> list[Tensor]:
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states[FEATURE_LAYER]
        patches = self.norm(states[:, 1:])
        return [self.heads[name](patches) for name in HEADS]

    @torch.no_grad()
    def held_out(self, count: int = 300) -> dict[str, float]:
        """Accuracy of each head over the patches of pictures that were not trained on."""
        inputs = tower_batch(np.arange(HELD_OUT, HELD_OUT + count), self.grid).inputs
        accuracy = {}
        for number, (name, logits) in enumerate(zip(HEADS, self._logits(inputs["pixel_values"]), strict=True)):
            targets = inputs["targets"][..., number]
            stated = targets != IGNORE
            accuracy[name] = round(float((logits.argmax(-1) == targets)[stated].float().mean()), 3)
        return accuracy

    @property
    def grid(self) -> int:
        """Patches a side."""
        config: Any = self.tower.config
        return int(config.image_size // config.patch_size)


class WarmupSteps:
    """A `BatchSource`: 128 pictures a step, drawn from the step number."""

    def __init__(self, grid: int, steps: int) -> None:
        self.grid, self.steps = grid, steps

    def load(self, step: int) -> list[Batch]:
        """The one micro-batch of a step."""
        return [tower_batch(np.random.default_rng([step, 3]).integers(0, PICTURES, BATCH), self.grid)]


def tower_batch(numbers: NDArray[np.int64], grid: int) -> Batch:
    """Pictures as the tower gets them, and the labels of their patches."""
    made = [_labelled(int(number), grid) for number in numbers]
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in made])).float()
    values = ((pixels / 255 - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(np.stack([labels for _, labels in made]))
    return Batch({"pixel_values": values, "targets": targets}, float(len(made)))


_CACHE: dict[tuple[int, int], tuple[world.Pixels, Labels]] = {}


def _labelled(number: int, grid: int) -> tuple[world.Pixels, Labels]:
    if (number, grid) not in _CACHE:
        made = world.picture(number)
        _CACHE[number, grid] = (made.pixels, patch_labels(made, grid))
    return _CACHE[number, grid]


def patch_labels(picture: world.Picture, grid: int) -> Labels:
    """[patches, heads] of value numbers; a patch belongs to the region that covers most of it."""
    size = IMAGE_SIDE // grid
    front = picture.mask.reshape(grid, size, grid, size).mean((1, 3)).flatten() > 0.5
    labels = np.full((grid * grid, len(HEADS)), IGNORE, np.int64)
    for inside, colour, mask in ((front, picture.front, picture.mask), (~front, picture.back, ~picture.mask)):
        alone = regions.island(mask)
        said = {
            "colour": colour,
            "side": regions.side(mask),
            "count": regions.count(mask),
            "island": None if alone is None else "yes" if alone else "no",
            "share": regions.share(mask),
            "pattern": next(fact.value for fact in picture.facts if fact.noun == "pattern"),
            "light": picture.light or "none",
        }
        for number, (name, values) in enumerate(HEADS.items()):
            if (value := said[name]) is not None:
                labels[inside, number] = values.index(value)
    return labels
