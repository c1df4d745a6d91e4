"""Warm-up of the pocket vision tower and projector: every patch learns to say what it is part of, in words.

First one linear layer per patch reads, off the features that the projector will get, the patch's colour and its
region's side, number of parts, whether it is an island, how much it covers, and the picture's pattern and light. Then
the projector learns to say the same in the language model's own word embeddings, so that an image token looks to the
language model like the words it could have read in a caption. This stands in for the pretraining that a real tower and
projector come with; only general pictures are used, and the heads are thrown away.
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
        return SimpleNamespace(loss=_heads_loss(self.logits(pixel_values), targets))

    def logits(self, pixel_values: Tensor) -> list[Tensor]:
        """[batch, patches, values] for each head."""
        patches = self.norm(_features(self.tower, pixel_values))
        return [self.heads[name](patches) for name in HEADS]


class WordAlignment(nn.Module):
    """Tower and projector, read out by the embeddings of the heads' words, which stay as they are."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        embeddings = model.model.language_model.embed_tokens.weight.detach()
        self.length = float(embeddings.norm(dim=1).mean())
        centred = (embeddings - embeddings.mean(0)) * (10 / self.length**2)  # a word's own embedding scores about 10
        words = [[tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in HEADS[name]] for name in HEADS]
        self.words = [centred[ids].T.clone() for ids in words]

    def forward(self, pixel_values: Tensor, targets: Tensor) -> SimpleNamespace:
        """As TowerWarmup; a token that grows far longer than a word is held back."""
        tokens = self.projector(_features(self.tower, pixel_values))
        logits = [tokens @ words for words in self.words]
        excess = (tokens.norm(dim=-1) / self.length - 2).clamp(min=0).square().mean()
        return SimpleNamespace(loss=_heads_loss(logits, targets) + 0.01 * excess)

    def logits(self, pixel_values: Tensor) -> list[Tensor]:
        """[batch, patches, values] for each head."""
        tokens = self.projector(_features(self.tower, pixel_values))
        return [tokens @ words for words in self.words]


def _features(tower: Any, pixel_values: Tensor) -> Tensor:
    """[batch, patches, width]: what the projector gets."""
    states: Tensor = tower(pixel_values, output_hidden_states=True).hidden_states[FEATURE_LAYER]
    return states[:, 1:]


def _heads_loss(logits: list[Tensor], targets: Tensor) -> Tensor:
    losses = [
        nn.functional.cross_entropy(one.flatten(0, 1), targets[..., number].flatten(), ignore_index=IGNORE)
        for number, one in enumerate(logits)
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def held_out(module: TowerWarmup | WordAlignment, count: int = 300) -> dict[str, float]:
    """Accuracy of each head over the patches of pictures that were not trained on."""
    inputs = tower_batch(np.arange(HELD_OUT, HELD_OUT + count), grid_of(module.tower)).inputs
    accuracy = {}
    for number, (name, logits) in enumerate(zip(HEADS, module.logits(inputs["pixel_values"]), strict=True)):
        targets = inputs["targets"][..., number]
        stated = targets != IGNORE
        accuracy[name] = round(float((logits.argmax(-1) == targets)[stated].float().mean()), 3)
    return accuracy


def grid_of(tower: Any) -> int:
    """Patches a side."""
    return int(tower.config.image_size // tower.config.patch_size)


class WarmupSteps:
    """A `BatchSource`: 128 pictures a step, drawn from the step number."""

    def __init__(self, tower: Any, steps: int, seed: int) -> None:
        self.grid, self.steps, self.seed = grid_of(tower), steps, seed

    def load(self, step: int) -> list[Batch]:
        """The one micro-batch of a step."""
        return [tower_batch(np.random.default_rng([step, self.seed]).integers(0, PICTURES, BATCH), self.grid)]


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
