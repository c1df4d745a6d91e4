"""What all readers make: a pair, and the values that go into its ``meta``."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adamllm_ray.data.verdicts import Verdict

MAX_META_BYTES = 64 << 10  # of one binary value; longer ones are left out of meta, their length is noted
MAX_IGNORED_NAMES = 40  # kinds of things that a reader left alone, in the manifest


@dataclass(frozen=True, slots=True)
class RawPair:
    """One record of a source, not yet checked.

    ``load`` returns the encoded image or raises ImageRefused; it is None when ``verdict`` is already known.
    """

    source: str
    key: str
    load: Callable[[], bytes] | None = None
    caption: str = ""
    caption_instruction: str | None = None
    meta: str | None = None
    verdict: Verdict | None = None
    detail: str | None = None


def plain(value: Any) -> Any:
    """JSON data from whatever a Parquet column may hold."""
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode() if len(value) <= MAX_META_BYTES else {"omitted_bytes": len(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def meta_json(value: Any) -> str:
    """What ``meta`` holds of a record: JSON in the strict sense; a nesting that Python cannot follow is left out."""
    try:
        return json.dumps(plain(value))
    except RecursionError:
        return json.dumps({"omitted": "nested too deeply"})


def kind(value: Any) -> str:
    """Name of a value's type, as a message shows it."""
    return "null" if value is None else type(value).__name__


def constant(data: bytes) -> Callable[[], bytes]:
    """A ``load`` for bytes that are already here."""
    return lambda: data


def note(ignored: Counter[str], what: str) -> None:
    """Count something that was left alone. The source chooses the names, so their number is bounded."""
    name = what if what in ignored or len(ignored) < MAX_IGNORED_NAMES else "other"
    ignored[name] += 1
