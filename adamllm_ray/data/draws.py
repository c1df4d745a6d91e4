"""Every random draw about a row: a hash of (seed, purpose, keys). Light, so the step loop can use it.

Keyed on ids, never on position, shard or arrival order (design rule 3), so a result does not depend on how many
workers made it or on which rows failed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 1 << 16  # ids that are Python strings at a time


def uniform(seed: int, purpose: str, *keys: object) -> float:
    """A number in [0, 1) that depends only on (seed, purpose, keys)."""
    text = "\x1f".join([str(seed), purpose, *map(str, keys)])
    data = text.encode("utf-8", "surrogatepass")  # lone surrogates occur in scraped captions
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") / 2**64


def draw_seed(seed: int, purpose: str, *keys: object) -> int:
    """A 31-bit seed for a sampler, drawn like `uniform`."""
    return int(uniform(seed, purpose, *keys) * 2**31)


def uniforms(ids: Any, seed: int, purpose: str, *keys: object, after: tuple[object, ...] = ()) -> NDArray[np.float64]:
    """``uniform(seed, purpose, *keys, id, *after)`` of each id of a pyarrow array, equal to the last bit."""
    import numpy as np

    head = "\x1f".join([str(seed), purpose, *map(str, keys), ""]).encode("utf-8", "surrogatepass")
    tail = "".join(f"\x1f{key}" for key in after).encode("utf-8", "surrogatepass")
    digests = [
        hashlib.blake2b(head + name.encode() + tail, digest_size=8).digest()
        for start in range(0, len(ids), _CHUNK)
        for name in ids[start : start + _CHUNK].to_pylist()
    ]
    return np.frombuffer(b"".join(digests), "<u8") / 2.0**64
