"""Attention over joined examples, one causal block after the other: no mask of tokens x tokens is ever made.

transformers sees from the restarting positions where an example ends (see `packing`) and by default writes the
block-diagonal mask out, which costs memory and keeps torch from its flash kernels. Here the mask is the list of
boundaries, and each block goes to torch's scaled-dot-product attention by itself, as an unmasked causal sequence. Work
grows with the sum of the squared lengths instead of the square of their sum. Registered with transformers'
AttentionInterface, whose documentation describes both hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

NAME = "adamllm_blocks"


def attend_in_blocks(model: Any) -> bool:
    """Let the language model of a vision-language model attend block by block. Returns False where it cannot.

    That is where some layers see a sliding window: their boundaries are not those of the examples alone.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    config = model.config.get_text_config()
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return False
    AttentionInterface.register(NAME, blockwise_attention)
    AttentionMaskInterface.register(NAME, boundaries)
    keys = [key for key in model.config.sub_configs if getattr(model.config, key) is config]
    model.set_attn_implementation(dict.fromkeys(keys, NAME) if keys else NAME)
    return True


def boundaries(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] | None = None,
    attention_mask: torch.Tensor | None = None,
    device: Any = None,
    **_: Any,
) -> torch.Tensor:
    """What goes through the model in the place of a mask: starts of the blocks and the end of the last, on the CPU.

    A block starts where a token does not see its neighbour on the left. One look per forward, so a GPU is waited for
    once and not in every layer.

    Raises:
        ValueError: a batch of several rows, padding, or a cache: those have no blocks.
    """
    if batch_size != 1 or q_length != kv_length or (attention_mask is not None and not bool(attention_mask.all())):
        raise ValueError(f"attention in blocks takes one row of joined examples, not {batch_size} or padded ones")
    if mask_function is None:
        return torch.tensor([0, q_length])
    here = torch.arange(1, q_length, device=device)
    zero = torch.zeros_like(here)
    joined = torch.as_tensor(mask_function(zero, zero, here, here - 1), device=device).expand(q_length - 1)
    starts = (~joined).nonzero().flatten().cpu() + 1
    return torch.cat([torch.zeros(1, dtype=starts.dtype), starts, torch.tensor([q_length])])


def blockwise_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each block.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, head size]; ``key`` and ``value`` may have fewer heads (grouped queries).
        key: see ``query``.
        value: see ``query``.
        attention_mask: what `boundaries` made; None for one block.
        options: passed on: dropout, scaling.

    Returns:
        [1, tokens, heads, head size], and no attention weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    options.pop("is_causal", None)
    edges = [0, query.shape[2]] if attention_mask is None else attention_mask.tolist()
    parts = []
    for start, stop in pairwise(edges):
        block = (tensor[:, :, start:stop] for tensor in (query, key, value))
        parts.append(sdpa_attention_forward(module, *block, attention_mask=None, is_causal=True, **options)[0])
    return torch.cat(parts, dim=1), None
