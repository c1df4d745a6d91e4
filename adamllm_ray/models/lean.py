"""transformers without scikit-learn, which it takes in for one function of assisted generation that nobody calls here.

    lean_transformers()
    from transformers import AutoProcessor

It costs every process that loads a model or a tokenizer, of which there are many on a node, up to a fifth of its start
and 50 to 140 MB (docs/decisions/0122-what-the-suite-costs.md). transformers asks once whether a package is there and
remembers the answer; scikit-learn is hidden while it asks, and is there for whoever wants it (`tuning/surface.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """A module that has not been imported yet cannot be found inside the block."""
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def lean_transformers() -> None:
    """To be called before anything of transformers is imported; later it does no harm."""
    from transformers.utils import is_sklearn_available

    if "sklearn" in sys.modules:
        return
    with hidden("sklearn"):
        is_sklearn_available()
