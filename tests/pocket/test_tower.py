"""Labels of patches, and a module whose loss falls on them."""

import numpy as np
import torch

from adamllm_ray.pocket import tower, world
from adamllm_ray.pocket.architecture import Size, build_vlm
from adamllm_ray.training.conversations import IGNORE


def test_patch_labels_follow_the_region():
    made = world.picture(11)
    labels = tower.patch_labels(made, 5)
    colours = {list(tower.HEADS["colour"])[value] for value in labels[:, 0]}
    assert colours <= {made.front, made.back}
    assert labels.shape == (25, len(tower.HEADS))
    assert (labels[:, 5] != IGNORE).all()


def test_warmup_learns(tmp_path):
    model = build_vlm(100, Size(hidden=64, layers=1, mlp=64, vision_hidden=64, vision_layers=2))
    warmup = tower.TowerWarmup(model.model.vision_tower)
    inputs = tower.tower_batch(np.arange(16), 5).inputs
    optimizer = torch.optim.AdamW(warmup.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = warmup(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
