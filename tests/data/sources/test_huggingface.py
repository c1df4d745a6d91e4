"""Hugging Face folders: the layout of ``save_to_disk``, written here as ``datasets`` writes it, and hostile ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from adamllm_ray.config import DataSection
from adamllm_ray.data.sources import source_fingerprint
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError
from tests.data.sources.reading import PNG, loaded, pairs

pytestmark = [pytest.mark.timeout(60), pytest.mark.guards]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Rows = list[tuple[dict[str, Any] | None, str | None]]


def save(folder: Path, shards: list[Rows], **state: Any) -> Path:
    """A data set of ``Image`` and text, as ``Dataset.save_to_disk`` lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{n:05d}-of-{len(shards):05d}.arrow" for n in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        image = pa.array([row[0] for row in rows], IMAGE)
        table = pa.table({"image": image, "text": [row[1] for row in rows], "label": list(range(len(rows)))})
        features = {"features": {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": features})})
        with pa.ipc.new_stream(folder / name, table.schema) as sink:
            sink.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def read(folder: Path, **options: Any) -> list[Any]:
    return pairs(folder, format="huggingface", columns={"caption": "text"}, **options)


def row(caption: str | None, image: bytes | None = PNG, path: str | None = None) -> tuple[dict[str, Any], str | None]:
    return {"bytes": image, "path": path}, caption


def test_a_data_set(tmp_path: Path) -> None:
    folder = save(tmp_path, [[row("a"), row("b"), row("c")], [row("d"), (None, "e"), row(None)]])
    (folder / "local.png").write_bytes(PNG + b"!")
    found = read(folder)
    assert [pair.caption for pair in found] == ["a", "b", "c", "d", "e", ""]
    assert [pair.key for pair in found] == ["0", "1", "2", "0", "1", "2"]
    assert found[3].source == "data-00001-of-00002.arrow"
    assert json.loads(found[3].meta) == {"label": 0}
    assert loaded(found[0]) == PNG
    assert found[4].verdict is Verdict.IMAGE_MISSING
    by_path = save(tmp_path / "paths", [[row("a", None, "local.png"), row("b", None, "../local.png")]])
    (by_path / "local.png").write_bytes(PNG)
    first, second = read(by_path)
    assert loaded(first) == PNG
    with pytest.raises(Exception, match="outside the image folder"):
        loaded(second)


def test_splits_must_be_chosen(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split, [[row(split)]])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(SourceError, match=r"splits 'train', 'test'; data\.split names none"):
        read(tmp_path)
    with pytest.raises(SourceError, match=r"data\.split is 'dev'"):
        read(tmp_path, split="dev")
    assert [pair.caption for pair in read(tmp_path, split="test")] == ["test"]
    prints = [
        source_fingerprint(DataSection(format="huggingface", path=str(tmp_path), split=split))
        for split in ("train", "test")
    ]
    assert prints[0] != prints[1]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert [pair.caption for pair in read(tmp_path)] == ["train"]


def test_the_file_format_is_read_too(tmp_path: Path) -> None:
    folder = save(tmp_path, [[row("a")]])
    part = folder / "data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(part.read_bytes()).read_all()
    with pa.ipc.new_file(part, table.schema) as sink:
        sink.write_table(table)
    assert [pair.caption for pair in read(folder)] == ["a"]


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no state\.json"):
        read(tmp_path)
    for content, message in {
        "{": "is not JSON",
        "{}": "names no data files",
        '{"_data_files": [{"filename": 3}]}': "names no data files",
        '{"_data_files": [{"filename": "../x.arrow"}]}': "not the name of a file in this folder",
        '{"_data_files": [{"filename": "gone.arrow"}]}': "gone.arrow",
        '{"_data_files": [{"filename": "a"}], "_indices_data_files": [{"filename": "i"}]}': "selection of rows",
    }.items():
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(SourceError, match=message):
            read(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../up"]}')
    with pytest.raises(SourceError, match="not the name of a file"):
        read(tmp_path)


def test_damaged_and_truncated_files_are_named(tmp_path: Path) -> None:
    folder = save(tmp_path, [[row("a"), row("b"), row("c")]])
    part = folder / "data-00000-of-00001.arrow"
    whole = part.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 300):
        part.write_bytes(whole[:length])
        with pytest.raises(SourceError, match="data-00000-of-00001"):
            read(folder)


def test_a_column_of_pickles_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, [[row("a")]])
    part = folder / "data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(part.read_bytes()).read_all()
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": "cos\nsystem\n"}
    table = table.append_column(pa.field("x", pa.binary(), metadata=metadata), [[b"x"]])
    with pa.ipc.new_stream(part, table.schema) as sink:
        sink.write_table(table)
    with pytest.raises(SourceError, match="pickled Python objects"):
        read(folder)


def test_offsets_that_lead_out_of_the_file(tmp_path: Path) -> None:
    """A text that is said to be a gigabyte long would be read from the memory behind the file."""
    folder = save(tmp_path, [[row("x" * 1111), row("y" * 2222)]])
    part = folder / "data-00000-of-00001.arrow"
    whole = part.read_bytes()
    offsets = struct.pack("<iii", 0, 1111, 3333)
    assert whole.count(offsets) == 1
    part.write_bytes(whole.replace(offsets, struct.pack("<iii", 0, 1111, 1 << 30)))
    with pytest.raises(SourceError, match="data-00000-of-00001"):
        read(folder)
