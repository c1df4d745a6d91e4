"""Attention block by block is attention under the block-diagonal causal mask, forward and backward."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from adamllm_ray.models.checkpoint import load_vlm
from adamllm_ray.training.attention import (
    NAME,
    TOWER_NAME,
    Blocks,
    attend_in_blocks,
    attend_to_images,
    blockwise_attention,
    boundaries,
    images_attention,
)

LENGTHS = [1, 7, 16, 3, 1]


def test_same_as_under_the_mask() -> None:
    """Four query heads share two key heads; gradients too."""
    torch.manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(1, 4, total, 8), (1, 2, total, 8), (1, 2, total, 8)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    blocks = Blocks(torch.tensor([0, *LENGTHS]).cumsum(0), max(LENGTHS))
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    found, weights = blockwise_attention(module, *tensors, attention_mask=blocks, dropout=0.0, scaling=0.3)
    example = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    mask = (example[:, None] == example[None, :]).tril()
    wide = [tensors[0], *(tensor.repeat_interleave(2, dim=1) for tensor in tensors[1:])]
    wanted = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=mask, scale=0.3).transpose(1, 2)
    assert weights is None
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, upstream), torch.autograd.grad(wanted, tensors, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_boundaries_are_where_a_token_does_not_see_its_neighbour() -> None:
    example = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))

    def visible(_batch: torch.Tensor, _head: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        return (kv <= q) & (example[q] == example[kv])

    total = sum(LENGTHS)
    edges, longest = boundaries(1, total, total, mask_function=visible)
    assert (edges.tolist(), longest) == ([0, 1, 8, 24, 27, 28], 16)
    edges, longest = boundaries(1, total, total, mask_function=lambda _batch, _head, q, kv: kv <= q)
    assert (edges.tolist(), longest) == ([0, total], total)
    edges, longest = boundaries(1, 1, 1, mask_function=visible)
    assert (edges.tolist(), longest) == ([0, 1], 1)


@pytest.mark.parametrize("lengths", [LENGTHS, [6, 6, 6], [9]])
def test_patches_see_their_own_image_only(lengths: list[int]) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    query, key, value = torch.randn(3, 1, 2, total, 8, dtype=torch.float64)
    module: Any = SimpleNamespace(num_key_value_groups=1, is_causal=False)
    edges = torch.tensor([0, *lengths]).cumsum(0)
    found, _ = images_attention(
        module, query, key, value, None, cu_seq_lens_q=edges, max_length_q=max(lengths), scaling=0.3
    )
    image = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = image[:, None] == image[None, :]
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(found, wanted.transpose(1, 2))


def test_only_towers_that_join_images_are_switched(tiny_vlm: Path, tiny_qwen: Path) -> None:
    """Same features with the switch and without."""
    assert not attend_to_images(load_vlm(tiny_vlm, "float32")[0])
    model, processor = load_vlm(tiny_qwen, "float32")
    images = [picture_of((56, 84)), picture_of((84, 84))]
    pixels = dict(processor.image_processor(images=images, return_tensors="pt"))
    inputs = {"pixel_values": pixels["pixel_values"], "image_grid_thw": pixels["image_grid_thw"]}
    wanted = torch.cat(model.get_image_features(**inputs).pooler_output)
    assert attend_to_images(model)
    assert model.model.visual.blocks[0].attn.config._attn_implementation == TOWER_NAME
    assert model.config.vision_config._attn_implementation == "sdpa"
    torch.testing.assert_close(torch.cat(model.get_image_features(**inputs).pooler_output), wanted)


def picture_of(size: tuple[int, int]) -> Image.Image:
    return Image.effect_noise(size, 60).convert("RGB")


@pytest.mark.parametrize(("rows", "length", "mask"), [(2, 8, None), (1, 9, None), (1, 8, torch.tensor([[1, 0]]))])
def test_rows_and_padding_are_refused(rows: int, length: int, mask: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="one row of joined examples"):
        boundaries(rows, length, 8, attention_mask=mask)


def test_only_the_language_model_is_switched(tiny_vlm: Path) -> None:
    model = load_vlm(tiny_vlm, "float32")[0]
    assert attend_in_blocks(model)
    assert model.config.get_text_config()._attn_implementation == NAME
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_a_sliding_window_keeps_its_mask(tiny_vlm: Path) -> None:
    model = load_vlm(tiny_vlm, "float32")[0]
    model.config.get_text_config().layer_types = ["full_attention", "sliding_attention"]
    assert not attend_in_blocks(model)
    assert model.config.get_text_config()._attn_implementation == "sdpa"
