"""Attention over joined examples, one causal block after the other: no mask of tokens x tokens is ever made.

transformers sees from the restarting positions where an example ends (see `packing`) and by default writes the
block-diagonal mask out, which costs memory and keeps torch from its flash kernels. Here the mask is the list of
boundaries (`Blocks`). On a GPU torch's variable-length flash attention takes all blocks in one call; elsewhere each
block goes to scaled-dot-product attention by itself, as an unmasked causal sequence. Work grows with the sum of the
squared lengths instead of the square of their sum. Registered with transformers' AttentionInterface, whose
documentation describes both hooks.

Vision towers that join the patches of several images (Qwen2-VL) have the same need without causality: by default
transformers reads the boundaries back from the GPU in every layer and attends image by image. `attend_to_images` gives
them the same kernel, and images of one size go as a batch, for which torch has faster ones.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch.nn.attention.varlen import varlen_attn

NAME = "adamllm_blocks"
# transformers hands boundaries only to implementations with "flash" in their name (is_flash_attention_requested)
TOWER_NAME = "adamllm_flash_images"
_HALF = (torch.bfloat16, torch.float16)  # what flash kernels take
# newer torch wants to be told that query heads share keys; torch 2.11 simply lets them
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


class Blocks(NamedTuple):
    """Joined examples along a sequence.

    Attributes:
        edges: [blocks + 1] int32, on the sequence's device: the first token of each block, and the end of the last.
        longest: tokens of the longest block.
    """

    edges: torch.Tensor
    longest: int


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
) -> Blocks:
    """What goes through the model in the place of a mask.

    A block starts where a token does not see its neighbour on the left. One look per forward, so a GPU is waited for
    once and not in every layer.

    Raises:
        ValueError: a batch of several rows, padding, or a cache: those have no blocks.
    """
    if batch_size != 1 or q_length != kv_length or (attention_mask is not None and not bool(attention_mask.all())):
        raise ValueError(f"attention in blocks takes one row of joined examples, not {batch_size} or padded ones")
    if mask_function is None:
        return Blocks(torch.tensor([0, q_length], dtype=torch.int32, device=device), q_length)
    here = torch.arange(1, q_length, device=device)
    zero = torch.zeros_like(here)
    joined = torch.as_tensor(mask_function(zero, zero, here, here - 1), device=device).expand(q_length - 1)
    starts = (~joined).nonzero().flatten() + 1
    edges = torch.cat([starts.new_zeros(1), starts, starts.new_full((1,), q_length)])
    return Blocks(edges.int(), int(edges.diff().max()))


def blockwise_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Blocks | None,
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
    length = query.shape[2]
    blocks = attention_mask or Blocks(torch.tensor([0, length], dtype=torch.int32, device=query.device), length)
    return _attention(module, query, key, value, blocks, causal=True, **options), None


def attend_to_images(model: Any) -> bool:
    """Let a vision tower that joins images attend to all of them in one call. Returns False where it does not join."""
    from transformers import AttentionInterface

    config = getattr(model.config, "vision_config", None)
    if config is None or not any(map(_joins_images, model.modules())):
        return False
    AttentionInterface.register(TOWER_NAME, images_attention)
    # a copy for the tower alone: transformers would look for flash_attn when the model's own is checked or used again
    own = copy.copy(config)
    own._attn_implementation = TOWER_NAME
    for module in model.modules():
        if getattr(module, "config", None) is config:
            module.config = own
    return True


def _joins_images(module: torch.nn.Module) -> bool:
    """Whether it is an attention layer that takes the boundaries of images."""
    name, parameters = type(module).__name__.lower(), inspect.signature(module.forward).parameters
    return "attention" in name and "cu_seqlens" in parameters


def images_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of all patches of an image to each other.

    Args:
        module: the attention layer.
        query: [1, heads, patches, head size], as ``key`` and ``value``.
        key: see ``query``.
        value: see ``query``.
        attention_mask: none.
        cu_seq_lens_q: [images + 1] where each image's patches begin.
        max_length_q: patches of the largest image.
        options: passed on: dropout, scaling.

    Returns:
        [1, patches, heads, head size], and no attention weights.
    """
    images, (_, heads, patches, size) = cu_seq_lens_q.numel() - 1, query.shape
    if patches == images * max_length_q:
        alike = (one.view(heads, images, max_length_q, size).transpose(0, 1) for one in (query, key, value))
        return _dense(module, *alike, causal=False, **options).flatten(0, 1)[None], None
    blocks = Blocks(cu_seq_lens_q, max_length_q)
    return _attention(module, query, key, value, blocks, causal=False, **options), None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Blocks,
    *,
    causal: bool,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """[1, heads, tokens, head size] three times -> [1, tokens, heads, head size]."""
    if query.is_cuda and query.dtype in _HALF and not dropout:
        return _varlen(query, key, value, blocks, causal, scaling)
    own: Any = {"causal": causal, "dropout": dropout, "scaling": scaling}
    cuts = pairwise(blocks.edges.tolist())
    return torch.cat(
        [_dense(module, *(one[:, :, start:stop] for one in (query, key, value)), **own) for start, stop in cuts], dim=1
    )


def _dense(module: torch.nn.Module, *tensors: torch.Tensor, causal: bool, **options: Any) -> torch.Tensor:
    """Torch's attention: query, key and value [batch, heads, tokens, size] -> [batch, tokens, heads, size]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    own = {name: options[name] for name in ("dropout", "scaling") if name in options}
    return sdpa_attention_forward(module, *tensors, attention_mask=None, is_causal=causal, **own)[0]


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: Blocks, causal: bool, scaling: float | None
) -> torch.Tensor:
    """All blocks in one kernel (torch.nn.attention.varlen)."""
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    window = (-1, 0 if causal else -1)
    edges, longest = blocks
    found: Any = varlen_attn(q, k, v, edges, edges, longest, longest, scale=scaling, window_size=window, **_GROUPED)
    return cast(torch.Tensor, found[None])
