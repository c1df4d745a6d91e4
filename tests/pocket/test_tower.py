"""Labels of patches, and a module whose loss falls on them."""

from dataclasses import replace

import numpy as np
import torch

from adamllm_ray.pocket import marks, tower, world
from adamllm_ray.pocket.architecture import Size, build_tokenizer, build_vlm
from adamllm_ray.pocket.curriculum import vocabulary
from adamllm_ray.training.conversations import IGNORE

SIDE_OF = {"upper": "top", "lower": "bottom", "left": "left", "right": "right"}
HALF_OF = {side: half for half, side in SIDE_OF.items()}


def test_patch_labels_follow_the_region():
    made = world.picture(11)
    labels = marks.patch_labels(made)
    colours = {list(marks.WORDS["colour"])[value] for value in labels[:, 0]}
    assert colours <= {made.front, made.back}
    assert labels.shape == (25, len(marks.WORDS))
    assert (labels[:, 5] != IGNORE).all()


def test_rare_values_weigh_more_and_not_without_limit():
    said = torch.tensor([0] * 900 + [1] * 100 + [IGNORE] * 50)
    weights = tower._rarity(said, 3)
    assert weights[1] / weights[0] == (torch.tensor(9.0) ** tower.RARITY)
    assert weights[2] / weights[1] == (torch.tensor(100 / tower.RARE) ** tower.RARITY)  # said by none


def test_counts_and_patterns_weigh_more():
    """A head that knows nothing costs the logarithm of its values, however often each is said."""
    targets = torch.stack([torch.arange(60) % len(values) for values in marks.WORDS.values()], -1)[None]
    logits = [torch.zeros(1, 60, len(values)) for values in marks.WORDS.values()]
    wanted = {name: tower.HEAD_WEIGHTS.get(name, 1.0) * np.log(len(values)) for name, values in marks.WORDS.items()}
    assert tower.HEAD_WEIGHTS["count"] > tower.HEAD_WEIGHTS["pattern"] > 1
    assert torch.isclose(tower._heads_loss(logits, targets), torch.tensor(sum(wanted.values())).float())


def test_labels_turn_with_their_picture():
    """A picture drawn from a turned mask has the labels that turning gives."""
    for number in range(30):
        made = world.picture(number)
        labels = marks.patch_labels(made)
        for turn in range(tower.TURNS):
            pixels, turned = tower._turned(made.pixels, labels, turn)
            mask = np.rot90(made.mask[:, ::-1] if turn >= 4 else made.mask, turn % 4)
            light = made.light and HALF_OF[tower._renamed(SIDE_OF[made.light], turn)]
            again = marks.patch_labels(replace(made, pixels=pixels, mask=mask, light=light))
            island = list(marks.WORDS).index("island")  # of two largest parts of one size the first one counts
            assert np.array_equal(np.delete(turned, island, 1), np.delete(again, island, 1))
    assert np.array_equal(pixels, np.rot90(made.pixels[:, ::-1], 3))


def test_turning_is_drawn_from_the_step():
    steps = tower.WarmupSteps(2, 0, 3)
    first, again, other = steps.load(0)[0], steps.load(0)[0], steps.load(1)[0]
    assert torch.equal(first.inputs["pixel_values"], again.inputs["pixel_values"])
    assert not torch.equal(first.inputs["pixel_values"], other.inputs["pixel_values"])


def test_warmup_learns(tmp_path):
    model = build_vlm(100, Size(hidden=64, layers=1, mlp=64, vision_hidden=64, vision_layers=2))
    warmup = tower.TowerWarmup(model.model.vision_tower)
    inputs = tower.tower_batch(np.arange(16)).inputs
    optimizer = torch.optim.AdamW(warmup.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = warmup(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_mark_says_its_words():
    tokenizer = build_tokenizer(vocabulary(), 1000)
    aligned = tower.WordAlignment(build_vlm(len(tokenizer), Size()), tokenizer)
    inputs = tower.tower_batch(np.arange(8)).inputs
    stated = (inputs["targets"] != IGNORE).sum(-1)
    wanted = aligned.marks(inputs["targets"])
    # sums of unlike words: about as long as the root of their number
    assert torch.allclose(wanted.norm(dim=-1) / aligned.length, stated.float().sqrt(), rtol=0.35)
    assert all(
        (read.argmax(-1) == said)[said != IGNORE].float().mean() > 0.9 for read, said in readings(aligned, inputs)
    )


def readings(aligned, inputs):
    """(scores of a head on the perfect tokens, what they should say) of each head."""
    return zip(aligned._read(aligned.marks(inputs["targets"])), inputs["targets"].unbind(-1), strict=True)
