"""Ids: any difference between two sets of rows is found, counted and named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from adamllm_ray.data.identity import check_same, ids_of, read_located, unique_ids
from adamllm_ray.errors import RowAccountingError, StorageError

DISK = pafs.LocalFileSystem()


def write(folder: Path, *names: str) -> str:
    file = folder / f"{'-'.join(names)}.parquet"
    pq.write_table(pa.table({"id": list(names), "image": [b"x"] * len(names)}), file)
    return str(file)


def test_ids_come_sorted_whatever_the_files(tmp_path: Path) -> None:
    files = [write(tmp_path, "c", "a"), write(tmp_path, "b")]
    assert ids_of(DISK, files, "here").to_pylist() == ["a", "b", "c"]
    assert len(ids_of(DISK, [], "here")) == 0


def test_an_id_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(RowAccountingError, match="id b occurs more than once in here"):
        ids_of(DISK, [write(tmp_path, "b", "a"), write(tmp_path, "b")], "here")


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    good, bad = write(tmp_path, "a"), tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 no")
    with pytest.raises(StorageError, match=r"bad\.parquet"):
        ids_of(DISK, [good, str(bad)], "here")


def test_missing_and_foreign_ids_are_counted_and_named() -> None:
    wanted = unique_ids([pa.array(["a", "b", "c"])], "")
    check_same(wanted, unique_ids([pa.array(["c", "a"]), pa.array(["b"])], ""), "stage")
    with pytest.raises(RowAccountingError, match="1 rows are missing and 0 are foreign, for example b"):
        check_same(wanted, unique_ids([pa.array(["a", "c"])], ""), "stage")
    with pytest.raises(RowAccountingError, match="0 rows are missing and 1 are foreign, for example z"):
        check_same(wanted, unique_ids([pa.array(["a", "b", "c", "z"])], ""), "stage")
    check_same(unique_ids([], ""), unique_ids([], ""), "stage")


def test_rows_are_located_in_their_files(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    for number, count in enumerate((5, 0, 7)):
        table = pa.table({"id": pa.array([f"{number}-{row}" for row in range(count)], pa.string())})
        pq.write_table(table, files[number], row_group_size=2)
    found = {
        name: (file, first + index)
        for file, first, batch in read_located(DISK, files, ["id", "absent"])
        for index, name in enumerate(batch.column("id").to_pylist())
    }
    assert found == {f"{file}-{row}": (file, row) for file, count in ((0, 5), (2, 7)) for row in range(count)}
    assert list(read_located(DISK, [], ["id"])) == []
