"""The satellite chips that ship with the package (``data.format: pocket``)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from adamllm_ray.config import DataSection
from adamllm_ray.data.sources.pair import RawPair, constant

POCKET_MODULES = ("domain", "chips", "language", "regions")  # what decides the chips and their captions


def pairs(data: DataSection, ignored: Counter[str]) -> Iterator[RawPair]:
    """The training chips, drawn when they are asked for. Nothing is ignored here."""
    from adamllm_ray.pocket.domain import training_pairs

    for pair in training_pairs(data.limit):
        meta = pair.meta if isinstance(pair.meta, str) else json.dumps(pair.meta)
        yield RawPair("pocket", pair.key, constant(pair.image_bytes), pair.caption, None, meta)


def fingerprint(data: DataSection) -> dict[str, Any]:
    """The code that draws the chips."""
    from adamllm_ray.data.manifest import code_version

    return {"pocket": code_version(*(f"adamllm_ray.pocket.{name}" for name in POCKET_MODULES))}
