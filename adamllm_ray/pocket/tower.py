"""Warm-up of the pocket vision tower and projector: every patch learns to say what it is part of, in words.

First one linear layer per patch reads, off the features that the projector will get, the patch's colour and its
region's side, number of parts, whether it is an island, how much it covers, and the picture's pattern and light. Then
the projector learns to say the same in the language model's own word embeddings, so that an image token looks to the
language model like the words it could have read in a caption. This stands in for the pretraining that a real tower and
projector come with; only general pictures are used, and the heads are thrown away.
"""

from __future__ import annotations

from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adamllm_ray.pocket import regions, world
from adamllm_ray.pocket.marks import GRID, HELD_OUT, LIGHTS, WORDS, Labels, patch_labels, word_id
from adamllm_ray.pocket.painting import Pixels
from adamllm_ray.training.collate import Batch
from adamllm_ray.training.conversations import IGNORE

FEATURE_LAYER = -2  # the layer LLaVA-NeXT reads (vision_feature_layer)
BATCH = 128
TOWER_PICTURES = 40_000
HEAD_WEIGHTS = {"count": 5.0, "pattern": 3.0}  # of what takes longest to learn; of other heads: 1
RARITY = 0.7  # 0: every patch counts the same, 1: every value does
TURNS = 8  # ways to turn and mirror a picture
_LEFT_TURN = {"right": "top", "top": "left", "left": "bottom", "bottom": "right"}
_MIRRORED = {"left": "right", "right": "left"}
# heads whose values name a side, and the value for each
_SIDED = {
    "side": {side: side for side in regions.SIDES},
    "light": {"top": LIGHTS["upper"], "bottom": LIGHTS["lower"], "left": LIGHTS["left"], "right": LIGHTS["right"]},
}
RARE = 20  # patches of a batch; a value that has fewer weighs no more than one that has so many
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # CLIP's, as in the image processor
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


class TowerWarmup(nn.Module):
    """A vision tower and one linear head per patch for every entry of WORDS."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        config: Any = tower.config
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.heads = nn.ModuleDict({name: nn.Linear(config.hidden_size, len(values)) for name, values in WORDS.items()})

    def forward(self, pixel_values: Tensor, targets: Tensor) -> SimpleNamespace:
        """Weighted sum over heads of the mean cross entropy.

        Args:
            pixel_values: [batch, 3, 60, 60].
            targets: [batch, patches, heads], IGNORE where there is nothing to say.
        """
        return SimpleNamespace(loss=_heads_loss(self.logits(pixel_values), targets))

    def logits(self, pixel_values: Tensor) -> list[Tensor]:
        """[batch, patches, values] for each head."""
        patches = self.norm(_features(self.tower, pixel_values))
        return [self.heads[name](patches) for name in WORDS]


class WordAlignment(nn.Module):
    """Tower and projector, made to write marks (`marks`): each token near the sum of its words' embeddings.

    The embeddings stay as they are, and read the tokens out.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        embeddings = model.model.language_model.embed_tokens.weight.detach()
        self.length = float(embeddings.norm(dim=1).mean())
        ids = [[word_id(tokenizer, word) for word in words] for words in WORDS.values()]
        self.words = [embeddings[one].clone() for one in ids]  # on the model's device, as it has trained there
        self.mean = embeddings.mean(0)

    def forward(self, pixel_values: Tensor, targets: Tensor) -> SimpleNamespace:
        """As TowerWarmup, and how far (in lengths of a word, squared) the tokens are from the marks they should be."""
        tokens = self.projector(_features(self.tower, pixel_values))
        far = (tokens - self.marks(targets)).square().sum(-1).mean() / self.length**2
        return SimpleNamespace(loss=_heads_loss(self._read(tokens), targets) + far)

    def marks(self, targets: Tensor) -> Tensor:
        """[batch, patches, width]: the sums of the stated words."""
        pairs = zip(self.words, targets.unbind(-1), strict=True)
        return torch.stack([words[said.clamp(min=0)] * (said >= 0)[..., None] for words, said in pairs]).sum(0)

    def logits(self, pixel_values: Tensor) -> list[Tensor]:
        """[batch, patches, values] for each head."""
        return self._read(self.projector(_features(self.tower, pixel_values)))

    def _read(self, tokens: Tensor) -> list[Tensor]:
        scale = 10 / self.length**2  # a word's own embedding scores about 10
        return [tokens @ (words - self.mean).T * scale for words in self.words]


def _features(tower: Any, pixel_values: Tensor) -> Tensor:
    """[batch, patches, width]: what the projector gets."""
    states: Tensor = tower(pixel_values, output_hidden_states=True).hidden_states[FEATURE_LAYER]
    return states[:, 1:]


def _heads_loss(logits: list[Tensor], targets: Tensor) -> Tensor:
    losses = []
    for number, (name, one) in enumerate(zip(WORDS, logits, strict=True)):
        said = targets[..., number].flatten()
        weights = _rarity(said, one.shape[-1])
        loss = nn.functional.cross_entropy(one.flatten(0, 1), said, weights, ignore_index=IGNORE)
        losses.append(HEAD_WEIGHTS.get(name, 1.0) * loss)
    return torch.stack(losses).sum()


def _rarity(said: Tensor, values: int) -> Tensor:
    """Weights of a head's values: nine of ten patches are of a region in one part, and a tower might always say so."""
    times = torch.bincount(said[said != IGNORE], minlength=values).clamp(min=RARE).float()
    return (times.sum() / times) ** RARITY


@torch.no_grad()
def held_out(module: TowerWarmup | WordAlignment, count: int = 300) -> dict[str, float]:
    """Accuracy of each head over the patches of pictures that were not trained on."""
    device = next(module.parameters()).device
    inputs = {
        name: tensor.to(device) for name, tensor in tower_batch(np.arange(HELD_OUT, HELD_OUT + count)).inputs.items()
    }
    accuracy = {}
    for number, (name, logits) in enumerate(zip(WORDS, module.logits(inputs["pixel_values"]), strict=True)):
        targets = inputs["targets"][..., number]
        stated = targets != IGNORE
        accuracy[name] = round(float((logits.argmax(-1) == targets)[stated].float().mean()), 3)
    return accuracy


class WarmupSteps:
    """A `BatchSource`: 128 pictures a step, turned or mirrored in one of eight ways, drawn from its number."""

    def __init__(self, steps: int, *seed: int) -> None:
        self.steps, self.seed = steps, seed

    def load(self, step: int) -> list[Batch]:
        """The one micro-batch of a step."""
        random = np.random.default_rng([step, *self.seed])
        return [tower_batch(random.integers(0, TOWER_PICTURES, BATCH), random.integers(0, TURNS, BATCH))]


def tower_batch(numbers: NDArray[np.int64], turns: NDArray[np.int64] | None = None) -> Batch:
    """Pictures as the tower gets them, and the labels of their patches.

    Args:
        turns: for each picture, how it is turned: quarter turns to the left, and mirrored first from 4 on.
    """
    made = [_labelled(int(number)) for number in numbers]
    if turns is not None:
        made = [_turned(*one, int(turn)) for one, turn in zip(made, turns, strict=True)]
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in made])).float()
    values = ((pixels / 255 - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(np.stack([labels for _, labels in made]))
    return Batch({"pixel_values": values, "targets": targets}, float(len(made)))


def _turned(pixels: Pixels, labels: Labels, turn: int) -> tuple[Pixels, Labels]:
    """A picture turned, and its patches' labels: where they are now, with left, right, top, bottom by new names."""
    grid = labels.reshape(GRID, GRID, -1)
    if turn >= 4:
        pixels, grid = pixels[:, ::-1], grid[:, ::-1]
    pixels, grid = np.rot90(pixels, turn % 4), np.rot90(grid, turn % 4).copy()
    for head in _SIDED:
        said = grid[..., list(WORDS).index(head)]
        said[...] = np.where(said == IGNORE, IGNORE, _new_values(head, turn)[said.clip(min=0)])
    return np.ascontiguousarray(pixels), grid.reshape(labels.shape)


@cache
def _new_values(head: str, turn: int) -> NDArray[np.int64]:
    """For each value of a head what it becomes in a picture turned."""
    values, sides = WORDS[head], _SIDED[head]
    new = np.arange(len(values))
    for side, value in sides.items():
        new[values.index(value)] = values.index(sides[_renamed(side, turn)])
    return new


def _renamed(side: str, turn: int) -> str:
    if turn >= 4 and side in _MIRRORED:
        side = _MIRRORED[side]
    for _ in range(turn % 4):
        side = _LEFT_TURN[side]
    return side


@lru_cache(maxsize=TOWER_PICTURES + 1000)
def _labelled(number: int) -> tuple[Pixels, Labels]:
    made = world.picture(number)
    return made.pixels, patch_labels(made)
