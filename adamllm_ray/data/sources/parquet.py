"""Parquet: one file or a folder; image as bytes, ``{bytes, path}`` struct, path or URI (``data.columns``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from adamllm_ray.config import DataSection
from adamllm_ray.data.sources import table
from adamllm_ray.data.sources.folder import ImageFolder
from adamllm_ray.data.sources.pair import RawPair
from adamllm_ray.data.sources.places import Part, existing, files_digest, parts, source_errors

SUFFIXES = (".parquet", ".pq")


def pairs(data: DataSection, ignored: Counter[str]) -> Iterator[RawPair]:
    """Every row of every file, files in the order of their names. Nothing is ignored here."""
    found = parts(data, SUFFIXES)
    folder = ImageFolder(data.image_folder or _parent(data, found), data.images.max_bytes, data.s3)
    for place, name, _ in found:
        with source_errors(place.uri), place.fs.open_input_file(place.path) as stream:
            with table.opening(place.uri):
                file = pq.ParquetFile(stream)
            table.refuse_pickles(file.schema_arrow, place.uri)
            table.check_columns(file.schema_arrow, data.columns, place.uri)
            number = 0
            for batch in file.iter_batches(batch_size=table.BATCH_ROWS):
                for row in table.rows(batch):
                    yield table.pair(name, str(number), row, data.columns, folder)
                    number += 1


def fingerprint(data: DataSection) -> dict[str, Any]:
    """Names, sizes and footers of the files: a footer holds offsets and statistics of all of its file."""
    return files_digest(parts(data, SUFFIXES))


def _parent(data: DataSection, found: list[Part]) -> str:
    """Where image paths of a Parquet source start: its folder."""
    place = existing(data)
    return place.uri.rpartition("/")[0] or "/" if found[0][0] == place else place.uri
