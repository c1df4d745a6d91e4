"""A Hugging Face data set on disk, as ``save_to_disk`` writes it: Arrow stream files and two JSON files beside them.

Read with pyarrow alone; the ``datasets`` package is not needed. The image column is what its ``Image`` feature stores,
``{bytes, path}``; paths are resolved inside ``data.image_folder``, or the data set's own folder. A ``DatasetDict`` has
several splits: ``data.split`` says which one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from adamllm_ray.config import DataSection
from adamllm_ray.data import storage
from adamllm_ray.data.sources import table
from adamllm_ray.data.sources.folder import ImageFolder
from adamllm_ray.data.sources.pair import RawPair
from adamllm_ray.data.sources.places import Part, existing, files_digest, source_errors
from adamllm_ray.errors import SourceError

_FILE_MAGIC = b"ARROW1"
_HOWTO = "data.path must name the folder that save_to_disk() wrote"


def pairs(data: DataSection, ignored: Counter[str]) -> Iterator[RawPair]:
    """Every row of the split, in its order. Holds one record batch, as large as its writer made it."""
    place = _split(data)
    folder = ImageFolder(data.image_folder or place.uri, data.images.max_bytes, data.s3)
    for part, name, _ in _files(place):
        number = 0
        with source_errors(part.uri):
            for batch in _batches(part, data):
                for row in table.rows(batch):
                    yield table.pair(name, str(number), row, data.columns, folder)
                    number += 1


def fingerprint(data: DataSection) -> dict[str, Any]:
    """The split, and names, sizes and both ends of its files."""
    place = _split(data)
    return {"split": place.uri.rpartition("/")[2] if data.split else None, **files_digest(_files(place))}


def _split(data: DataSection) -> storage.Location:
    """The folder of one split."""
    place = existing(data)
    splits = _json(place, "dataset_dict.json")
    if splits is None:
        return place
    names = splits.get("splits") if isinstance(splits, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SourceError(f"{place.uri}/dataset_dict.json lists no splits; {_HOWTO}")
    if data.split is None and len(names) == 1:
        return place.child(_inside(names[0], place))
    if data.split is None or data.split not in names:
        wanted = "names none" if data.split is None else f"is '{data.split}'"
        raise SourceError(f"{place.uri} has the splits {', '.join(map(ascii, names[:20]))}; data.split {wanted}")
    return place.child(_inside(data.split, place))


def _files(place: storage.Location) -> list[Part]:
    """The Arrow files in the order of ``state.json``, which is the order of the rows."""
    state = _json(place, "state.json")
    if not isinstance(state, dict):
        raise SourceError(f"{place.uri} has no state.json; {_HOWTO}")
    if state.get("_indices_data_files"):
        raise SourceError(f"{place.uri} holds a selection of rows; write it again with flatten_indices()")
    entries = state.get("_data_files")
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise SourceError(f"{place.uri}/state.json names no data files; {_HOWTO}")
    with source_errors(place.uri):
        found = [place.child(_inside(str(name), place)) for name in names]
        return [
            (part, str(name), part.fs.get_file_info(part.path).size or 0)
            for part, name in zip(found, names, strict=True)
        ]


def _inside(name: str, place: storage.Location) -> str:
    """A name from a JSON file of the data set, refused when it leads out of the folder."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise SourceError(f"{place.uri}: not the name of a file in this folder: {name[:100]!r}")
    return name


def _json(place: storage.Location, name: str) -> Any:
    with source_errors(place.uri):
        text = storage.read_small(place.child(name))
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place.uri}/{name} is not JSON: {error}") from error


def _batches(place: storage.Location, data: DataSection) -> Iterator[pa.RecordBatch]:
    """Record batches of an Arrow stream (or file), each checked through and through before a value is touched."""
    with place.fs.open_input_file(place.path) as raw:
        in_file_format = raw.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        raw.seek(0)
        with table.opening(place.uri):
            reader = pa.ipc.open_file(raw) if in_file_format else pa.ipc.open_stream(raw)
        table.refuse_pickles(reader.schema, place.uri)
        table.check_columns(reader.schema, data.columns, place.uri)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if in_file_format else reader:
            batch.validate(full=True)  # offsets that lead outside the buffers would read foreign memory
            yield batch
