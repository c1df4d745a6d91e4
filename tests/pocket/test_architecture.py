"""What the language half of a pocket model starts from."""

from __future__ import annotations

import torch

from adamllm_ray.pocket import world
from adamllm_ray.pocket.architecture import Size, begin_by_saying, build_tokenizer, build_vlm
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
