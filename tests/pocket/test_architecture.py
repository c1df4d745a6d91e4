"""What the language half of a pocket model starts from."""

from __future__ import annotations

import numpy as np
import torch

from adamllm_ray.pocket import world
from adamllm_ray.pocket.architecture import IMAGE_SIDE, Size, begin_by_saying, build_tokenizer, build_vlm
from adamllm_ray.pocket.curriculum import vocabulary


def test_a_word_is_like_itself_with_a_space_before_it() -> None:
    tokenizer = build_tokenizer(vocabulary(), 1000)
    model = build_vlm(len(tokenizer), Size())
    begin_by_saying(model, tokenizer)
    embeddings = model.get_input_embeddings().weight
    ids = tokenizer.get_vocab()
    values = [value for values in world.TYPES.values() for value in values]
    steps = torch.stack([embeddings[ids[value]] - embeddings[ids[f"\u0120{value}"]] for value in values])
    assert torch.allclose(steps, steps[0].expand_as(steps), atol=1e-6)
    # the output layer says what the state is like
    alike = torch.nn.functional.normalize(model.lm_head.weight) @ torch.nn.functional.normalize(embeddings).T
    told = [ids[f"\u0120{value}"] for value in values]
    assert torch.equal(alike[told].argmax(-1), torch.tensor(told))


def test_a_head_of_the_tower_begins_by_looking_next_to_its_patch() -> None:
    size = Size()
    tower = build_vlm(1000, size).model.vision_tower
    tower.set_attn_implementation("eager")
    pictures = torch.from_numpy(np.stack([world.picture(number).pixels for number in range(8)]))
    values = pictures.permute(0, 3, 1, 2).float() / 64 - 2
    grid = IMAGE_SIDE // size.patch
    with torch.no_grad():
        looks = tower(values, output_attentions=True).attentions[0].mean(0)  # [heads, to, from]
    middle = 1 + grid * (grid // 2) + grid // 2
    there = {0: middle - grid, 1: middle + grid, 2: middle - 1, 3: middle + 1}
    assert {head: int(looks[head, middle].argmax()) for head in there} == there
    corner = 1
    assert [int(looks[head, corner].argmax()) for head in there] == [0, corner + grid, 0, corner + 1]
