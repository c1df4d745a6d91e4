"""Row identity: the ids of sets of Parquet files, compared as sorted Arrow arrays.

An id is 32 characters: a million take 40 MB here and a Python set of them 150. Arrow's own threads read the files, the
columns asked for only; a synthesis of a million rows has some sixteen thousand of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import fs as pafs

from adamllm_ray.data import storage
from adamllm_ray.errors import RowAccountingError

FILES_AHEAD = 16  # opened before their turn; on S3 each costs a round trip


def read_columns(fs: pafs.FileSystem, files: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of Parquet files (paths inside ``fs``), in the files' order. Raises what Arrow raises."""
    if files:
        parts = pads.dataset(list(files), filesystem=fs, format="parquet")
        yield from parts.to_batches(columns=list(columns), fragment_readahead=FILES_AHEAD)


def read_located(
    fs: pafs.FileSystem, files: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[int, int, pa.RecordBatch]]:
    """(position of the file in ``files``, number of the first row inside it, rows) in the files' order.

    Columns that the first file lacks are left out. Raises what Arrow raises.
    """
    if not files:
        return
    parts = pads.dataset(list(files), filesystem=fs, format="parquet")
    names = [name for name in columns if name in parts.schema.names]
    numbers, current, first = {path: number for number, path in enumerate(files)}, "", 0
    for batch in parts.to_batches(columns=[*names, "__filename"], fragment_readahead=FILES_AHEAD):
        if not len(batch):
            continue
        path = batch.column("__filename")[0].as_py()
        current, first = path, first if path == current else 0
        yield numbers[path], first, batch.select(names)
        first += len(batch)


def ids_of(fs: pafs.FileSystem, files: Sequence[str], where: str) -> pa.LargeStringArray:
    """All ids in Parquet files, sorted.

    Raises:
        RowAccountingError: an id occurs twice.
        StorageError: a file cannot be read.
    """
    with storage.storage_errors("read the ids", where):
        return unique_ids([batch.column("id") for batch in read_columns(fs, files, ["id"])], where)


def unique_ids(parts: Sequence[pa.Array], where: str) -> pa.LargeStringArray:
    """The ids of all parts, sorted. Raises RowAccountingError when one occurs twice."""
    ids = sorted_ids(parts)
    twice = repeated(ids)
    if len(twice):
        raise RowAccountingError(f"id {twice[0]} occurs more than once in {where}")
    return ids


def sorted_ids(parts: Sequence[pa.Array]) -> pa.LargeStringArray:
    """One sorted array; large, because seventy million ids have more characters than a plain one can hold."""
    strings = [part.cast(pa.large_string()) for part in parts]
    ids = pa.concat_arrays(strings) if strings else pa.array([], pa.large_string())
    return ids.take(pc.sort_indices(ids))


def repeated(ids: pa.LargeStringArray) -> pa.LargeStringArray:
    """Every occurrence but the first of the ids that a sorted array has more than once."""
    return ids[1:].filter(pc.equal(ids[1:], ids[:-1])) if len(ids) > 1 else ids[:0]


def missing(wanted: pa.LargeStringArray, found: pa.LargeStringArray) -> pa.LargeStringArray:
    """The ids of ``wanted`` that are not in ``found``."""
    return wanted.filter(pc.invert(pc.is_in(wanted, found)))


def check_same(wanted: pa.LargeStringArray, found: pa.LargeStringArray, what: str) -> None:
    """Raise RowAccountingError, counting and naming the difference, unless both (sorted) are the same ids."""
    if wanted.equals(found):
        return
    lost, foreign = missing(wanted, found), missing(found, wanted)
    example = (lost if len(lost) else foreign)[0]
    raise RowAccountingError(
        f"{what}: {len(lost)} rows are missing and {len(foreign)} are foreign, for example {example}; "
        "start the stage again with --force-new"
    )
