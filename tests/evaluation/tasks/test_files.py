"""Where a task's rows are found: files, folders, saved data sets and their splits, on disk and on S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.errors import SourceError
from adamllm_ray.evaluation.tasks.files import TaskSource
from tests.buckets import local_bucket
from tests.evaluation.tasks import released

pytestmark = pytest.mark.timeout(120)


def labels(path: Path | str, split: str | None = None, names: tuple[str, ...] = ()) -> list[Any]:
    return [row["label"] for row in TaskSource("evaluation.tasks.0", str(path), split, names).rows()]


def rows(*texts: str) -> released.Rows:
    return [released.row(i, "?", text) for i, text in enumerate(texts)]


def test_a_saved_data_set_and_its_splits(tmp_path: Path) -> None:
    released.write_saved(tmp_path / "test", rows("a", "b", "c"))
    released.write_saved(tmp_path / "train", rows("d"))
    assert labels(tmp_path / "test") == ["a", "b", "c"]
    assert labels(tmp_path) == ["a", "b", "c"]  # 'test' is the usual one
    assert labels(tmp_path, "train") == ["d"]
    with pytest.raises(SourceError, match=r"evaluation\.tasks\.0: .* holds no 'val' split .* but test, train"):
        labels(tmp_path, "val")


def test_the_folder_of_a_release_holds_several_sets(tmp_path: Path) -> None:
    released.write_saved(tmp_path / "SLAKE", rows("a"))
    released.write_saved(tmp_path / "vqa_rad", rows("b"))
    assert labels(tmp_path, names=("SLAKE",)) == ["a"]
    assert labels(tmp_path, names=("other", "vqa_rad")) == ["b"]
    with pytest.raises(SourceError, match="SLAKE, vqa_rad"):
        labels(tmp_path)


def test_parquet_files_of_one_split(tmp_path: Path) -> None:
    for name, text in (("test-00001-of-00002", "b"), ("test-00000-of-00002", "a"), ("train-00000-of-00001", "c")):
        released.write_parquet(tmp_path / "data", rows(text), f"{name}.parquet")
    assert labels(tmp_path) == ["a", "b"]
    assert labels(tmp_path, "train") == ["c"]
    assert labels(tmp_path / "data" / "train-00000-of-00001.parquet") == ["c"]


@pytest.mark.parametrize("pattern", ["{}-00000-of-00001.parquet", "{}.parquet", "data/{}-0.parquet", "{}/0.parquet"])
def test_another_split_is_never_read_unasked(tmp_path: Path, pattern: str) -> None:
    def write(split: str) -> None:
        below, _, name = pattern.format(split).rpartition("/")
        released.write_parquet(tmp_path / below, rows(split), name)

    write("train")
    write("validation")
    with pytest.raises(SourceError, match=r"holds no 'test' split .* one of its splits as split"):
        labels(tmp_path)
    write("test")
    assert labels(tmp_path) == ["test"]
    assert labels(tmp_path, "validation") == ["validation"]
    assert TaskSource("f", str(tmp_path)).split_read() == "test"
    assert TaskSource("f", str(tmp_path), "train").split_read() == "train"


def test_what_was_read_is_told(tmp_path: Path) -> None:
    def told(path: Path, split: str | None = None, names: tuple[str, ...] = ()) -> str | None:
        return TaskSource("f", str(path), split, names).split_read()

    released.write_parquet(tmp_path / "plain", rows("a"), "part-0.parquet")
    assert told(tmp_path / "plain") is None
    released.write_parquet(tmp_path / "set" / "val", rows("a"), "0.parquet")
    assert told(tmp_path / "set" / "val") == told(tmp_path / "set", "val") == "val"
    released.write_saved(tmp_path / "saved" / "train", rows("a"))
    assert told(tmp_path / "saved" / "train") == told(tmp_path / "saved", "train") == "train"
    with pytest.raises(SourceError, match="holds no 'test' split"):  # the only one, and another
        told(tmp_path / "saved")
    released.write_saved(tmp_path / "own", rows("a"))
    assert told(tmp_path / "own") is None
    with pytest.raises(SourceError, match="holds no 'val' split"):
        told(tmp_path / "own", "val")
    assert told(tmp_path, "test", ("own",)) is None  # a release's folder is its test set
    assert told(tmp_path / "plain" / "part-0.parquet") is None


def test_what_datasets_itself_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_dict({"label": ["a", "b"]})
    datasets.DatasetDict({"test": found}).save_to_disk(tmp_path / "saved")
    assert labels(tmp_path / "saved") == ["a", "b"]


@pytest.mark.parametrize("name", ["missing.parquet", "notes.txt", "empty"])
def test_nothing_to_read_names_the_field(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=rf"evaluation\.tasks\.0: .*{name}"):
        labels(tmp_path / name)


@pytest.mark.parametrize("state", ["{", "[]", '{"_data_files": [{"filename": "../x.arrow"}]}', '{"_data_files": []}'])
def test_a_damaged_state_is_a_source_error(tmp_path: Path, state: str) -> None:
    released.write_saved(tmp_path, rows("a"))
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(SourceError, match="names no data files"):
        labels(tmp_path)


def test_a_selection_of_rows_is_refused(tmp_path: Path) -> None:
    released.write_saved(tmp_path, rows("a"))
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "x"}]}))
    with pytest.raises(SourceError, match="flatten_indices"):
        labels(tmp_path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    field = pa.field("label", pa.binary(), metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"})
    pq.write_table(pa.table([pa.array([b"x"])], schema=pa.schema([field])), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="pickled"):
        labels(tmp_path / "a.parquet")


def test_small_files_beside_the_rows(tmp_path: Path) -> None:
    source = TaskSource("f", str(released.write_saved(tmp_path / "a" / "b", rows("a"))))
    assert source.beside("names.json") is None
    (tmp_path / "a" / "names.json").write_bytes(b"1")
    assert source.beside("names.json") == b"1"
    assert source.columns() == ["image", "input", "label"]


def test_another_content_is_another_digest(tmp_path: Path) -> None:
    first = TaskSource("f", str(released.write_parquet(tmp_path / "a", rows("a")))).digest()
    assert TaskSource("f", str(released.write_parquet(tmp_path / "b", rows("a")))).digest() == first
    assert TaskSource("f", str(released.write_parquet(tmp_path / "c", rows("b")))).digest() != first


def test_what_questions_are_made_of_beside_the_rows_is_in_the_digest(tmp_path: Path) -> None:
    rows_ = [{"image": f"{i}.png", "input": "?", "label": "a"} for i in (0, 0, 1)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "q.jsonl").write_text("\n".join([*map(json.dumps, rows_), "{ broken", '{"image": [1]}']))
        (tmp_path / folder / "0.png").write_bytes(b"0")
    pq.write_table(pa.Table.from_pylist(rows_), tmp_path / "a" / "q.parquet")
    sources = [TaskSource("f", str(tmp_path / name)) for name in ("a/q.jsonl", "a/q.parquet")]
    found = [[one.digest("names.json") for one in sources]]
    assert TaskSource("f", str(tmp_path / "b" / "q.jsonl")).digest("names.json") == found[0][0]  # a copy
    for name, content in (("0.png", b"1"), ("1.png", b"2"), ("names.json", b"{}"), ("names.json", b"[]")):
        (tmp_path / "a" / name).write_bytes(content)
        found.append([one.digest("names.json") for one in sources])
    (tmp_path / "a" / "2.png").write_bytes(b"no row names it")
    assert [one.digest("names.json") for one in sources] == found[-1]
    assert all(len(set(digests)) == len(digests) for digests in zip(*found, strict=True))


def test_on_s3(tmp_path: Path) -> None:
    with local_bucket() as bucket:
        for file in released.write_saved(tmp_path / "SLAKE", rows("a", "b")).iterdir():
            bucket.upload_file(str(file), f"sets/SLAKE/{file.name}")
        (tmp_path / "names.json").write_bytes(b"1")
        bucket.upload_file(str(tmp_path / "names.json"), "sets/names.json")
        source = TaskSource("f", "s3://runs/sets", names=("SLAKE",))
        assert [row["label"] for row in source.rows()] == ["a", "b"]
        assert source.beside("names.json") == b"1"
        assert source.digest() == TaskSource("f", str(tmp_path / "SLAKE")).digest()
        with pytest.raises(SourceError, match="does not exist"):
            TaskSource("f", "s3://runs/nowhere").files()
