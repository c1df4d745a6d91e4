"""The satellite chips that ship with the package (``data.format: pocket``)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from adamllm_ray.config import DataSection
from adamllm_ray.data.sources.pair import RawPair, constant
from adamllm_ray.errors import SourceError

POCKET_MODULES = ("domain", "chips", "language", "regions")  # what decides the chips and their captions


def pairs(data: DataSection, ignored: Counter[str]) -> Iterator[RawPair]:
    """The training chips, drawn when they are asked for. Nothing is ignored here.

    Raises:
        SourceError: ``data.split`` is neither absent nor 'train'.
    """
    from adamllm_ray.pocket.domain import training_pairs

    if data.split not in (None, "train"):
        raise SourceError(f"data.split: '{data.split}' is no split of the pocket domain to train on; there is 'train'")
    for pair in training_pairs(data.limit, hold_back=data.split == "train"):
        meta = pair.meta if isinstance(pair.meta, str) else json.dumps(pair.meta)
        yield RawPair("pocket", pair.key, constant(pair.image_bytes), pair.caption, None, meta)


def fingerprint(data: DataSection) -> dict[str, Any]:
    """The code that draws the chips, and which of them."""
    from adamllm_ray.data.manifest import code_version

    drawn = {"pocket": code_version(*(f"adamllm_ray.pocket.{name}" for name in POCKET_MODULES))}
    return drawn | ({"split": data.split} if data.split else {})
