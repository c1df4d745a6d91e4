"""Shards: about equal in size, small in memory, and the same rows wherever they are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from adamllm_ray.data import shards
from adamllm_ray.data.record import RECORD_SCHEMA, record_id
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.shards import ShardWriter

pytestmark = pytest.mark.timeout(60)


def row(number: int, size: int) -> dict[str, Any]:
    image = bytes([number % 256]) * size
    blank = dict.fromkeys(RECORD_SCHEMA.names)
    return blank | {
        "id": record_id(image, "", str(number)),
        "source": "s",
        "key": str(number),
        "image": image,
        "caption": f"{number}",
        "verdict": "ok",
    }


def write(tmp_path: Path, sizes: list[int], max_rows: int, max_bytes: int) -> list[Path]:
    stage = RunFolder(str(tmp_path)).stage("ingest")
    stage.begin({})
    stage.clear()
    writer = ShardWriter(stage, max_rows, max_bytes)
    for number, size in enumerate(sizes):
        writer.add(row(number, size))
    writer.close()
    writer.close()
    parts = sorted(Path(stage.data).iterdir())
    assert writer.shards == len(parts)
    return parts


def test_sizes_are_about_equal(tmp_path: Path) -> None:
    sizes = [1000 + 37 * (n % 200) for n in range(1500)]
    parts = write(tmp_path, sizes, 10_000, 500_000)
    on_disk = [part.stat().st_size for part in parts]
    assert len(parts) > 10
    assert max(on_disk[:-1]) <= 1.1 * min(on_disk[:-1])
    assert max(on_disk) < 600_000
    keys = [key for part in parts for key in pq.read_table(part).column("key").to_pylist()]
    assert keys == [str(n) for n in range(1500)]


def test_rows_are_a_bound_too_and_a_large_row_stands_alone(tmp_path: Path) -> None:
    parts = write(tmp_path, [10] * 25 + [5000] * 2 + [10], 10, 4000)
    assert [pq.read_metadata(part).num_rows for part in parts] == [10, 10, 5, 1, 1, 1]


def test_a_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 10_000)
    [part] = write(tmp_path, [1000] * 55, 1000, 1 << 20)
    metadata = pq.read_metadata(part)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [9, 9, 9, 9, 9, 9, 1]
    table = pq.read_table(part, page_checksum_verification=True)
    assert table.schema.equals(RECORD_SCHEMA)
    assert table.column("image").to_pylist() == [row(n, 1000)["image"] for n in range(55)]


def test_no_rows_make_no_shard(tmp_path: Path) -> None:
    assert write(tmp_path, [], 10, 10) == []
