"""Parquet: columns of every kind, and files that are hostile."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from adamllm_ray.config import Columns
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError
from tests.data.sources.reading import PNG, loaded, pairs, parquet
from tests.hostile import Bomb

pytestmark = [pytest.mark.timeout(60), pytest.mark.guards]


def test_parquet_bytes_struct_and_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    kinds: dict[str, list[Any]] = {
        "bytes": [PNG, None],
        "struct": [{"bytes": PNG, "path": "x"}, {"bytes": None, "path": "a.png"}],
        "path": ["a.png", str(tmp_path / "a.png")],
    }
    for kind, values in kinds.items():
        file = parquet(tmp_path, {"image": values, "caption": ["one", None], "label": [3, 4]}, f"{kind}.parquet")
        found = pairs(file, format="parquet")
        assert [pair.caption for pair in found] == ["one", ""]
        assert [pair.key for pair in found] == ["0", "1"]
        assert json.loads(found[1].meta or "") == {"label": 4}
        assert loaded(found[0]) == PNG
        if kind == "bytes":
            assert found[1].verdict is Verdict.IMAGE_MISSING
        else:
            assert loaded(found[1]) == PNG


def test_parquet_folder_columns_and_order(tmp_path: Path) -> None:
    for part, start in (("b.parquet", 2), ("a.parquet", 0), ("sub/c.parquet", 4)):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        rows = {"photo": [PNG, PNG], "text": [str(start), str(start + 1)], "name": [f"n{start}", None]}
        parquet(tmp_path, rows, part)
    columns = Columns(image="photo", caption="text", key="name")
    found = pairs(tmp_path, format="parquet", columns=columns)
    assert [pair.caption for pair in found] == list("012345")
    assert [(pair.source, pair.key) for pair in found[:3]] == [
        ("a.parquet", "n0"),
        ("a.parquet", "None"),
        ("b.parquet", "n2"),
    ]


def test_parquet_odd_values_land_in_meta(tmp_path: Path) -> None:
    import datetime

    table = {
        "image": [PNG],
        "caption": ["c"],
        "when": [datetime.datetime(2024, 1, 2)],
        "nan": [float("nan")],
        "raw": [b"\xff\x00"],
        "big": [b"x" * 100_000],
        "deep": [{"a": [1.5, None]}],
    }
    [pair] = pairs(parquet(tmp_path, table), format="parquet")
    meta = json.loads(pair.meta or "")
    assert meta["nan"] is None
    assert meta["raw"] == "/wA="
    assert meta["big"] == {"omitted_bytes": 100_000}
    assert meta["deep"] == {"a": [1.5, None]}
    assert meta["when"].startswith("2024-01-02")


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    broken = pa.array([b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    table = pa.table({"image": [PNG], "caption": broken, "note": broken})
    [pair] = pairs(parquet(tmp_path, table), format="parquet")
    assert pair.caption == "caf\ufffd"
    assert json.loads(pair.meta or "") == {"note": "caf\ufffd"}


def test_parquet_wrong_columns(tmp_path: Path) -> None:
    file = parquet(tmp_path, {"img": [PNG], "caption": ["c"]})
    with pytest.raises(SourceError, match=r"no column 'image' \(data.columns.image\); it has: img, caption"):
        pairs(file, format="parquet")
    file = parquet(tmp_path, {"image": [PNG], "caption": [3]})
    with pytest.raises(SourceError, match="holds int64, not texts"):
        pairs(file, format="parquet")
    file = parquet(tmp_path, {"image": [1.5], "caption": ["c"]})
    assert pairs(file, format="parquet")[0].verdict is Verdict.IMAGE_MISSING


def test_parquet_damaged_or_absent(tmp_path: Path) -> None:
    file = parquet(tmp_path / "x", {"image": [PNG] * 5, "caption": ["c"] * 5})
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(SourceError, match=r"t\.parquet"):
        pairs(file, format="parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no \\.parquet file"):
        pairs(tmp_path / "empty", format="parquet")


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_with_pickles_is_refused(tmp_path: Path, nested: bool) -> None:
    """Reliability test 56: in a process where Ray has registered the type whose values it unpickles."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    marker = tmp_path / "marker"
    kind = ArrowPythonObjectType()
    column = pa.ExtensionArray.from_storage(kind, pa.array([pickle.dumps(Bomb(marker))], pa.large_binary()))
    if nested:
        column = pa.StructArray.from_arrays([column], ["inner"])
    file = parquet(tmp_path, pa.table({"image": [PNG], "caption": ["c"], "extra": column}))
    with pytest.raises(SourceError, match="pickled Python objects"):
        pairs(file, format="parquet")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["arrow.py_extension_type", "ray.data.arrow_tensor", "ray.data.arrow_variable_shaped_tensor"]
)
def test_parquet_with_hostile_extension_metadata(tmp_path: Path, name: str) -> None:
    """Types that once unpickled what their metadata holds, with and without Ray's types registered."""
    import ray.data

    assert ray.data
    marker = tmp_path / "marker"
    metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": pickle.dumps(Bomb(marker), 0)}
    field = pa.field("extra", pa.list_(pa.int64()), metadata=metadata)
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string()), field])
    table = pa.table({"image": [PNG], "caption": ["c"], "extra": [[1]]}).cast(schema)
    with contextlib.suppress(SourceError):  # refused, or read as the plain list that it is
        assert [pair.caption for pair in pairs(parquet(tmp_path, table), format="parquet")] == ["c"]
    assert not marker.exists()
