"""Facts about the shape of a region, read off its mask: which side, how many parts, island or not, how much.

Used for both worlds, procedural pictures and satellite chips, so that the same words mean the same geometry.
Each function returns None where a careful person would not commit to an answer; no fact is made from those.
Masks are boolean arrays of shape (height, width).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

SIDES = ("left", "right", "top", "bottom")
NUMBERS = ("one", "two", "three", "four")
SHARES = ("most", "half", "little")

VISIBLE_SHARE = 0.010  # a part below this share of the picture may be overlooked ...
SPECK_SHARE = 0.003  # ... and one above this may not be ignored: in between, no count is stated


def side(mask: Mask) -> str | None:
    """Where the region lies, when it clearly leans to one of the four sides."""
    share = mask.mean()
    if not 0.10 <= share <= 0.75:
        return None
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    right = columns.mean() / (width - 1) - 0.5
    down = rows.mean() / (height - 1) - 0.5
    lean, other = max(abs(right), abs(down)), min(abs(right), abs(down))
    if lean < 0.10 or lean < 1.7 * other:
        return None
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "bottom" if down > 0 else "top"


def count(mask: Mask) -> str | None:
    """How many separate parts (one to four), when every part is either plainly visible or a speck."""
    shares = _part_shares(mask)
    visible = [share for share in shares if share >= VISIBLE_SHARE]
    if any(SPECK_SHARE <= share < VISIBLE_SHARE for share in shares) or not 1 <= len(visible) <= len(NUMBERS):
        return None
    return NUMBERS[len(visible) - 1]


def island(mask: Mask) -> bool | None:
    """Whether the largest part lies wholly inside the picture (True) or plainly runs out of it (False)."""
    main = _largest_part(mask)
    if main.mean() < 0.015:
        return None
    border = np.concatenate([main[0], main[-1], main[1:-1, 0], main[1:-1, -1]])
    if not border.any():
        return True
    return False if border.mean() >= 0.08 else None


def share(mask: Mask) -> str | None:
    """How much of the picture the region covers, away from the limits between the words."""
    covered = mask.mean()
    if covered >= 0.70:
        return "most"
    if 0.40 <= covered <= 0.60:
        return "half"
    return "little" if 0.05 <= covered <= 0.28 else None


def _part_shares(mask: Mask) -> list[float]:
    from scipy import ndimage

    labels, parts = ndimage.label(mask)
    if not parts:
        return []
    return list(np.bincount(labels.ravel())[1:] / mask.size)


def _largest_part(mask: Mask) -> Mask:
    from scipy import ndimage

    labels, parts = ndimage.label(mask)
    if not parts:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = labels == sizes.argmax()
    return largest
