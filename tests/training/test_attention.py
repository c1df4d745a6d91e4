"""Attention block by block is attention under the block-diagonal causal mask, forward and backward."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adamllm_ray.models.checkpoint import load_vlm
from adamllm_ray.training.attention import NAME, attend_in_blocks, blockwise_attention, boundaries

LENGTHS = [1, 7, 16, 3, 1]


def test_same_as_under_the_mask() -> None:
    """Four query heads share two key heads; gradients too."""
    torch.manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(1, 4, total, 8), (1, 2, total, 8), (1, 2, total, 8)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    edges = torch.tensor([0, *LENGTHS]).cumsum(0)
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    found, weights = blockwise_attention(module, *tensors, attention_mask=edges, dropout=0.0, scaling=0.3)
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
    assert boundaries(1, total, total, mask_function=visible).tolist() == [0, 1, 8, 24, 27, 28]
    causal = boundaries(1, total, total, mask_function=lambda _batch, _head, q, kv: kv <= q)
    assert causal.tolist() == [0, total]
    assert boundaries(1, 1, 1, mask_function=visible).tolist() == [0, 1]


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
