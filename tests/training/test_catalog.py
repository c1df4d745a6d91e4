"""Every row is found where it lies, no image is read to plan with, and row groups are not read again and again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import ImageLimits
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.models.checkpoint import load_processor
from adamllm_ray.training import catalog as catalog_module
from adamllm_ray.training.catalog import (
    REPLAY_SCHEMA,
    RowReader,
    build_catalog,
    read_catalog,
    replay_row,
    write_catalog,
)
from adamllm_ray.training.lengths import Lengths
from tests.training.conftest import ROWS, finished_synthesis, picture, synthesized_rows


class Fixed:
    """A measure that counts what it is asked."""

    def __init__(self) -> None:
        self.rows = self.images = 0

    def __call__(self, rows: pa.Table) -> Any:
        self.rows += len(rows)
        return np.full((len(rows), 3), 7, np.int32)

    def size(self, image: bytes | None) -> tuple[int, int]:
        self.images += 1
        return 60, 60


def sized_rows(count: int = ROWS) -> list[dict[str, Any]]:
    return [row | ({"width": 60, "height": 60} if row["image"] else {}) for row in synthesized_rows(count)]


def replay_file(stage: StageFolder, count: int) -> list[str]:
    rows = [replay_row(f"r{number:03}", None, [("user", "0?"), ("assistant", "1")]) for number in range(count)]
    Path(stage.path).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows[::-1], REPLAY_SCHEMA), f"{stage.path}/r.parquet", row_group_size=4)
    return [f"{stage.path}/r.parquet"]


def test_rows_are_found_whatever_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "MEASURED_AT_ONCE", 10)
    run, measure = finished_synthesis(tmp_path, sized_rows()), Fixed()
    stage = run.stage("train")
    replay = replay_file(stage, 11)
    write_catalog(build_catalog(run.stage("synthesize"), {"general": replay}, measure), stage)
    catalog = read_catalog(stage)
    items, reader = catalog.items(), RowReader(catalog, stage.fs)
    assert (measure.rows, measure.images) == (ROWS - 2 + 11, 0)
    assert len(items) == ROWS - 2 + 11
    assert {items[index].source for index in range(11)} <= {"", "general"}
    wanted = {row["id"]: row["caption"] for row in synthesized_rows()}
    for index in range(len(items)):
        row = reader.read(index)
        assert row["id"] == items.id(index)
        assert row["caption"] == wanted[row["id"]] if items[index].source == "" else row["turns"]
    assert catalog.table["verdict"].to_pylist().count("duplicate") == 1


def test_the_same_catalog_with_sizes_from_ingest_and_from_headers(tmp_path: Path, tiny_vlm: Path) -> None:
    measure = Lengths(load_processor(tiny_vlm), ImageLimits())
    tables = []
    for name, rows in (("a", sized_rows()), ("b", synthesized_rows())):
        run = finished_synthesis(tmp_path / name, rows)
        tables.append(build_catalog(run.stage("synthesize"), {}, measure).table.drop_columns("file"))
    assert tables[0].equals(tables[1])
    assert (tables[0]["caption"].to_numpy() > 0).sum() == ROWS - 2


def many_files(folder: Path, files: int, rows: int) -> tuple[RunFolder, list[str]]:
    run, ids = RunFolder(str(folder)), []
    stage = run.stage("synthesize")
    stage.begin({"made by": "a test"})
    Path(stage.data).mkdir()
    for number in range(files):
        part = [row | {"id": f"{number:02}{row['id'][2:]}", "verdict": "ok"} for row in sized_rows(rows)]
        ids += [row["id"] for row in part]
        pq.write_table(
            pa.Table.from_pylist([row | {"image": picture(1)} for row in part]), f"{stage.data}/{number}.parquet"
        )
    stage.finish(rows_in=files * rows, verdicts={"kept": files * rows}, seconds=0.0)
    return run, ids


def test_shuffled_reading_of_many_files(tmp_path: Path) -> None:
    """Room for all: each row group once. Room for a quarter: never more than one for each row. No file stays open."""
    files, rows = 20, 8
    run, ids = many_files(tmp_path, files, rows)
    stage = run.stage("synthesize")
    catalog = build_catalog(stage, {}, Fixed())
    order = list(range(files * rows))
    random.Random(0).shuffle(order)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    reader = RowReader(catalog, stage.fs)
    assert sorted(reader.read(item)["id"] for item in order) == sorted(ids)
    assert reader.reads == files
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened + 1
    (size,) = {table.nbytes for table in list(reader._groups.values())[:1]}
    small = RowReader(catalog, stage.fs, cache_bytes=files // 4 * size)
    for step in range(0, len(order), 16):
        found = small.rows(order[step : step + 16])
        assert [found[item]["id"] for item in order[step : step + 16]] == [
            catalog.items().id(item) for item in order[step : step + 16]
        ]
    assert len(small._groups) <= files // 4 + 1
    assert small.reads <= len(order)
