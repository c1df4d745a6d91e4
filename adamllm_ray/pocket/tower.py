"""Warm-up of the pocket vision tower: linear heads read facts off the patch features that the projector will get.

It stands in for the contrastive pretraining that a real tower comes with. Only general pictures are used.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adamllm_ray.pocket import world
from adamllm_ray.pocket.curriculum import HELD_OUT, PICTURES, fact_slots, picture, tower_targets
from adamllm_ray.training.collate import Batch

FEATURE_LAYER = -2  # the layer LLaVA-NeXT reads (vision_feature_layer)
BATCH = 128
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # CLIP's, as in the image processor
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


class TowerWarmup(nn.Module):
    """Tower plus one linear layer over all patch features; its slots are the values of every (kind, noun) of fact."""

    def __init__(self, tower: nn.Module, slots_from: int = 4000) -> None:
        super().__init__()
        self.tower = tower
        config: Any = tower.config
        patches = (config.image_size // config.patch_size) ** 2
        self.slots = fact_slots(range(slots_from))
        width = config.hidden_size * patches
        torch.manual_seed(0)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, max(high for _, high in self.slots.values())))

    def forward(self, pixel_values: Tensor, targets: Tensor) -> SimpleNamespace:
        """Cross entropy over the facts of a batch.

        Args:
            pixel_values: [batch, 3, 60, 60].
            targets: [facts, 4] of (row, first slot, last slot + 1, right slot).
        """
        logits = self._fact_logits(pixel_values, targets)
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits, targets[:, 3]))

    def _fact_logits(self, pixel_values: Tensor, targets: Tensor) -> Tensor:
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states[FEATURE_LAYER]
        logits = self.head(states[:, 1:].flatten(1))[targets[:, 0]]
        slot = torch.arange(logits.shape[1])
        allowed = (slot >= targets[:, 1:2]) & (slot < targets[:, 2:3])
        return logits.masked_fill(~allowed, -1e9)

    @torch.no_grad()
    def held_out(self, count: int = 300) -> dict[str, float]:
        """Accuracy per kind of fact on pictures that were not trained on."""
        numbers = np.arange(HELD_OUT, HELD_OUT + count)
        batch = tower_batch(numbers, self.slots)
        targets = batch.inputs["targets"]
        right = self._fact_logits(batch.inputs["pixel_values"], targets).argmax(-1) == targets[:, 3]
        kinds = [fact.kind for number in numbers for fact in picture(int(number))[1]]
        return {
            kind: round(float(np.mean([hit for hit, one in zip(right.tolist(), kinds, strict=True) if one == kind])), 3)
            for kind in sorted(set(kinds))
        }


class WarmupSteps:
    """A `BatchSource`: 128 pictures a step, drawn from the step number."""

    def __init__(self, slots: dict[tuple[str, str], tuple[int, int]], steps: int) -> None:
        self.slots, self.steps = slots, steps

    def load(self, step: int) -> list[Batch]:
        """The one micro-batch of a step."""
        return [tower_batch(np.random.default_rng([step, 3]).integers(0, PICTURES, BATCH), self.slots)]


def tower_batch(numbers: np.ndarray, slots: dict[tuple[str, str], tuple[int, int]]) -> Batch:
    """Pictures as the tower gets them, and the facts to read off them."""
    pixels = np.stack([_pixels(int(number)) for number in numbers])
    values = (torch.from_numpy(pixels).float() / 255 - _MEAN) / _STD
    targets = torch.tensor(tower_targets(numbers, slots))
    inputs = {"pixel_values": values.permute(0, 3, 1, 2).contiguous(), "targets": targets}
    return Batch(inputs, float(len(targets)))


_CACHE: dict[int, np.ndarray] = {}


def _pixels(number: int) -> np.ndarray:
    if number not in _CACHE:
        _CACHE[number] = world.picture(number).pixels
    return _CACHE[number]
