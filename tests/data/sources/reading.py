"""What the tests of the readers share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.config import DataSection
from adamllm_ray.data.sources import RawPair, read_pairs
from tests import hostile

PNG = hostile.good_png()


def pairs(path: Path, *, ignored: Counter[str] | None = None, **options: Any) -> list[RawPair]:
    return list(read_pairs(DataSection.model_validate({"path": str(path), **options}), ignored))


def loaded(pair: RawPair) -> bytes:
    assert pair.load is not None
    return pair.load()


def parquet(folder: Path, table: dict[str, Any] | pa.Table, name: str = "t.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), folder / name)
    return folder / name
