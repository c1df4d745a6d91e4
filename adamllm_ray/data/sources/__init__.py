"""Readers: each turns a kind of data set into a stream of raw image-caption pairs, in a fixed order.

* sharegpt     a .json list or .jsonl file beside a folder of images (the paper's format)
* parquet      one file or a folder; image as bytes, ``{bytes, path}`` struct, path or URI (``data.columns``)
* webdataset   tar shards, read as a stream by member name: never extracted, never unpickled
* huggingface  a folder written by ``datasets``' ``save_to_disk``
* pocket       the satellite chips that ship with the package

A record that cannot be read becomes a pair with a verdict, so every record of the source is a row of the run. Only
when the source *as a whole* cannot be read is it a SourceError. Image paths are resolved inside the image folder
and nowhere else: no URL is fetched, no ``..`` or link leads out.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from adamllm_ray.config import DataSection
from adamllm_ray.data.sources.folder import ImageFolder
from adamllm_ray.data.sources.pair import RawPair

__all__ = ["CODE", "ImageFolder", "RawPair", "read_pairs", "source_fingerprint"]

FORMATS = ("sharegpt", "parquet", "webdataset", "huggingface", "pocket")
CODE = [__name__, *(f"{__name__}.{name}" for name in ("folder", "pair", "places", "table", *FORMATS))]


def read_pairs(data: DataSection, ignored: Counter[str] | None = None) -> Iterator[RawPair]:
    """All pairs of the configured source, in the source's order, at most ``data.limit``.

    What belongs to no pair (a pickle in a tar, a link) is counted by kind in ``ignored``.

    Raises:
        SourceError: the source does not exist, is of another kind, or is damaged beyond single records.
    """
    return islice(_reader(data).pairs(data, Counter() if ignored is None else ignored), data.limit)


def source_fingerprint(data: DataSection) -> dict[str, Any]:
    """What tells one state of the source from another without reading all of it; see each format's ``fingerprint``."""
    found: dict[str, Any] = _reader(data).fingerprint(data)
    return found


def _reader(data: DataSection) -> Any:
    return importlib.import_module(f"{__name__}.{data.format}")
