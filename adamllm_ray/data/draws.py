"""Every random draw about a row: a hash of (seed, purpose, keys). Standard library only, so the step loop can use it.

Keyed on ids, never on position, shard or arrival order (design rule 3), so a result does not depend on how many
workers made it or on which rows failed.
"""

from __future__ import annotations

import hashlib


def uniform(seed: int, purpose: str, *keys: object) -> float:
    """A number in [0, 1) that depends only on (seed, purpose, keys)."""
    text = "\x1f".join([str(seed), purpose, *map(str, keys)])
    data = text.encode("utf-8", "surrogatepass")  # lone surrogates occur in scraped captions
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") / 2**64


def draw_seed(seed: int, purpose: str, *keys: object) -> int:
    """A 31-bit seed for a sampler, drawn like `uniform`."""
    return int(uniform(seed, purpose, *keys) * 2**31)
