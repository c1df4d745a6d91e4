"""Several examples in one sequence: no padding, and no example sees another.

Ids and labels are put one behind the other; positions start again at 0 in each example, and there is no attention
mask. The restarts are where attention stops (see `attention`), so the losses are those of the examples on their own.
Qwen2-VL's three-dimensional positions (mRoPE) are computed for each example as the model itself would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from adamllm_ray.training.conversations import IGNORE

Piece = tuple[list[int], list[int], "dict[str, torch.Tensor]"]  # ids, labels, the image's tensors (or none)
RopeIndex = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def rope_index(config: Any) -> RopeIndex | None:
    """The model's own function from (ids, token types, image grid) to mRoPE positions [3, 1, tokens].

    None for families whose positions are simply 0, 1, 2, ... The model is made on the meta device: no weights.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        inner: Any = getattr(AutoModelForImageTextToText.from_config(config), "model", None)
    if not hasattr(inner, "get_rope_index"):
        return None

    def positions(ids: torch.Tensor, types: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
        found: torch.Tensor = inner.get_rope_index(ids, types, image_grid_thw=grid)[0]
        return found

    return positions


def pack(pieces: Sequence[Piece], image_id: int | None, rope: RopeIndex | None) -> dict[str, torch.Tensor]:
    """One row of joined examples.

    Returns:
        input_ids and labels [1, tokens]; position_ids [1, tokens], or [4, 1, tokens] with mRoPE (text positions first);
        mm_token_type_ids [1, tokens] with mRoPE.
    """
    ids = torch.tensor([[token for piece in pieces for token in piece[0]]])
    labels = torch.tensor([[label for piece in pieces for label in (IGNORE, *piece[1][1:])]])
    inputs = {"input_ids": ids, "labels": labels}
    text = torch.cat([torch.arange(len(piece[0])) for piece in pieces])[None]
    if rope is None:
        return inputs | {"position_ids": text}
    types = torch.eq(ids, -1 if image_id is None else image_id).long()
    start, spatial = 0, []
    for piece in pieces:
        part = slice(start, start + len(piece[0]))
        spatial.append(rope(ids[:, part], types[:, part], piece[2].get("image_grid_thw")))
        start = part.stop
    return inputs | {"position_ids": torch.cat([text[None], torch.cat(spatial, -1)]), "mm_token_type_ids": types}
