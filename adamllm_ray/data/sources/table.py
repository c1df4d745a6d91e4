"""Rows of Arrow tables as pairs: what Parquet files and Hugging Face folders have in common.

Nothing in a table is unpickled: a column that holds pickled Python objects makes the source unusable, whether or not
the column is asked for, because reading it would run code of whoever wrote the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from adamllm_ray.config import Columns
from adamllm_ray.data.sources.folder import ImageFolder
from adamllm_ray.data.sources.pair import RawPair, kind, meta_json
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError, foreign

BATCH_ROWS = 32
_PICKLED = (b"arrow.py_extension_type", b"ray.data.arrow_pickled_object")  # Arrow extension types that unpickle


@contextmanager
def opening(where: str) -> Iterator[None]:
    """Around opening a file: extension types that are registered in this process are built then, by foreign code.

    Raises:
        SourceError: whatever went wrong there.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise SourceError(
            f"cannot read {foreign(where)}: the type of a column is unusable: {foreign(error)}"
        ) from error


def refuse_pickles(schema: pa.Schema, where: str) -> None:
    """Raise SourceError when a column, however nested, is of a type whose values are read by unpickling them.

    ``import ray.data`` registers such a type; touching one value of it runs the code inside.
    """
    serialized = schema.serialize().to_pybytes()
    for name in _PICKLED:
        if name in serialized:
            raise SourceError(
                f"{foreign(where)} holds pickled Python objects (extension type {name.decode()}): reading them would "
                "run code from the file, so it is refused; write the data set again without that column"
            )


def check_columns(schema: pa.Schema, columns: Columns, where: str) -> None:
    """Raise SourceError when a column of ``data.columns`` is not there or the caption is no text."""
    for option, name in (("image", columns.image), ("caption", columns.caption), ("key", columns.key)):
        if name is not None and name not in schema.names:
            raise SourceError(
                f"{foreign(where)} has no column '{name}' (data.columns.{option}); it has: "
                f"{foreign(', '.join(schema.names[:20]), 1000)}"
            )
    kind = schema.field(columns.caption).type
    text = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_string_view(text)):
        holds = foreign(kind, 100)
        raise SourceError(
            f"{foreign(where)}: column '{columns.caption}' holds {holds}, not texts (data.columns.caption)"
        )


def rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries. A text that is not UTF-8 gets replacement characters instead of ending the job."""
    for index in range(batch.num_rows):
        row: dict[str, Any] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                row[name] = column[index].as_py()
            except UnicodeDecodeError as error:
                row[name] = bytes(error.object).decode("utf-8", "replace")
        yield row


def pair(source: str, key: str, row: dict[str, Any], columns: Columns, folder: ImageFolder) -> RawPair:
    """The pair of one row; the columns that are neither image, caption nor key go into ``meta``."""
    image, caption = row.pop(columns.image), row.pop(columns.caption)
    if columns.key is not None:
        key = str(row.pop(columns.key, None))
    meta = meta_json(row)
    if isinstance(image, dict):
        image = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    if isinstance(image, bytes):
        return RawPair(source, key, lambda: image, caption or "", None, meta)
    if isinstance(image, str):
        return RawPair(source, key, lambda: folder.read(image), caption or "", None, meta)
    detail = "the image is null" if image is None else f"the image is {kind(image)}, not bytes or a path"
    return RawPair(source, key, None, caption or "", None, meta, Verdict.IMAGE_MISSING, detail)
