"""Sources: every record becomes a pair or a verdict, and nothing outside the image folder is read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import Columns, DataSection
from adamllm_ray.data import jsonfile
from adamllm_ray.data.sources import ImageFolder, RawPair, read_pairs, source_fingerprint
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused, SourceError
from tests import hostile

pytestmark = pytest.mark.timeout(60)
PNG = hostile.good_png()


def pairs(path: Path, **options: Any) -> list[RawPair]:
    return list(read_pairs(DataSection(path=str(path), **options)))


def loaded(pair: RawPair) -> bytes:
    assert pair.load is not None
    return pair.load()


def one(tmp_path: Path, record: Any) -> RawPair:
    [pair] = pairs(hostile.write_folder(tmp_path / "one", {"a.png": PNG}, [record]))
    return pair


# ShareGPT ----------------------------------------------------------------------------------------------------------


def test_paper_layout(tmp_path: Path) -> None:
    pair = one(tmp_path, hostile.share_gpt("a.png", "A pond.", id="x7", tags=["wet"]))
    assert (pair.caption, pair.caption_instruction, pair.source, pair.key) == (
        "A pond.",
        "What is it?",
        "data.jsonl",
        "1",
    )
    assert json.loads(pair.meta or "") == {"id": "x7", "tags": ["wet"]}
    assert loaded(pair) == PNG


@pytest.mark.parametrize(
    ("record", "caption", "instruction"),
    [
        (
            {"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "C"}]},
            "C",
            None,
        ),
        ({"images": ["a.png"], "messages": [{"role": "assistant", "content": "C"}]}, "C", None),
        (
            {
                "images": [{"path": "a.png"}],
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "C"}]},
                    {"role": "user", "content": "more"},
                    {"role": "assistant", "content": "later"},
                ],
            },
            "C",
            "Q",
        ),
        ({"image": "a.png", "caption": "C"}, "C", None),
        ({"images": ["a.png"], "messages": [{"role": "user", "content": "Q\n<image>"}]}, "", "Q"),
    ],
)
def test_layouts_in_use(tmp_path: Path, record: dict[str, Any], caption: str, instruction: str | None) -> None:
    pair = one(tmp_path, record)
    assert (pair.verdict, pair.caption, pair.caption_instruction) == (None, caption, instruction)
    assert loaded(pair) == PNG


def test_more_images_than_one_is_remarked(tmp_path: Path) -> None:
    record = hostile.share_gpt("a.png", "C") | {"images": ["a.png", "b.png", "c.png"]}
    assert one(tmp_path, record).detail == "first of 3 images"


@pytest.mark.parametrize(
    "record",
    [
        "{broken",
        "[1, 2]",
        '"text"',
        "17",
        "null",
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        {},
        {"images": [], "messages": []},
        {"images": ["a.png"]},
        {"images": [3], "messages": []},
        {"images": ["a.png"], "messages": "text"},
        {"images": ["a.png"], "messages": ["text"]},
        {"images": ["a.png"], "messages": [{"role": "assistant"}]},
        {"images": ["a.png"], "messages": [{"role": None, "content": "x"}]},
    ],
)
def test_a_record_that_is_not_one(tmp_path: Path, record: Any) -> None:
    pair = one(tmp_path, record)
    assert pair.verdict is Verdict.ROW_UNREADABLE
    assert pair.detail
    json.loads(pair.meta or "")


def test_malformed_line_costs_only_itself(tmp_path: Path) -> None:
    good = json.dumps(hostile.share_gpt("a.png", "C"))
    folder = hostile.write_folder(tmp_path, {"a.png": PNG}, [])
    lines = [good.encode(), b'{"images": ["a.png"], "mess', b"", b"\xff\xfe\x00 not text", good.encode()]
    (folder / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    found = pairs(folder)
    assert [pair.key for pair in found] == ["1", "2", "4", "5"]
    assert [pair.verdict for pair in found] == [None, Verdict.ROW_UNREADABLE, Verdict.ROW_UNREADABLE, None]
    assert "line 2 is not JSON" in (found[1].detail or "")
    assert "line 4 is not UTF-8" in (found[2].detail or "")
    assert '"mess' in json.loads(found[1].meta or "")["text"]


def test_an_endless_line_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "MAX_RECORD_BYTES", 1000)
    folder = hostile.write_folder(tmp_path, {}, ["x" * 5000, hostile.share_gpt("a.png", "C"), "y" * 999])
    found = pairs(folder)
    assert [pair.key for pair in found] == ["1", "2", "3"]
    assert "longer than" in (found[0].detail or "")
    assert found[1].verdict is None


def test_list_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [hostile.share_gpt("a.png", f"caption {n} " + "ü\n" * (n * 7), n=n) for n in range(60)] + [[1], 12345]
    for indent in (None, 2):
        text = json.dumps(records, indent=indent, ensure_ascii=False)
        folder = hostile.write_folder(tmp_path / str(indent), {"a.png": PNG}, [])
        (folder / "data.jsonl").unlink()
        (folder / "data.json").write_text("\n " + text + "\n", "utf-8")
        for size in (7, 64, 1 << 20):
            monkeypatch.setattr(jsonfile, "_CHUNK_CHARS", size)
            found = pairs(folder)
            assert [pair.key for pair in found] == [str(n + 1) for n in range(62)]
            assert [pair.caption for pair in found[:60]] == [
                record["messages"][1]["content"] for record in records[:60]
            ]
            assert [pair.verdict for pair in found[60:]] == [Verdict.ROW_UNREADABLE] * 2


@pytest.mark.parametrize(
    "text", ["[{}, {]", "[{}", "[{} {}]", "[{},]", "[", "[{}]\n[{}]", '[{"a": "' + "x" * 5000, "[1, nope]"]
)
def test_broken_list_stops_and_says_where(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "MAX_RECORD_BYTES", 1 << 20)
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(SourceError, match=r"record \d+ near line \d+"):
        pairs(tmp_path)


def test_empty_list_has_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(" [ ] ")
    assert pairs(tmp_path) == []


def test_not_a_number_does_not_reach_meta(tmp_path: Path) -> None:
    pair = one(tmp_path, '{"image": "a.png", "caption": "C", "score": NaN, "top": Infinity}')
    assert json.loads(pair.meta or "") == {"score": None, "top": None}


def test_limit_stops_reading(tmp_path: Path) -> None:
    folder = hostile.write_folder(tmp_path, {}, [hostile.share_gpt("a.png", str(n)) for n in range(9)])
    assert [pair.caption for pair in pairs(folder, limit=3)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "data.path is empty"), ("nowhere", "does not exist"), ("two", "exactly one"), ("none", "exactly one")],
)
def test_source_that_is_not_there(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "none").mkdir()
    hostile.write_folder(tmp_path / "two", {}, [], "a.jsonl")
    hostile.write_folder(tmp_path / "two", {}, [], "b.json")
    with pytest.raises(SourceError, match=message):
        list(read_pairs(DataSection(path=str(tmp_path / path) if path else "")))


def test_image_folder_that_is_not_there(tmp_path: Path) -> None:
    folder = hostile.write_folder(tmp_path, {}, [hostile.share_gpt("a.png", "C")])
    with pytest.raises(SourceError, match="image_folder"):
        pairs(folder, image_folder=str(tmp_path / "nowhere"))


# Image paths -------------------------------------------------------------------------------------------------------


@pytest.fixture
def vault(tmp_path: Path) -> ImageFolder:
    """An image folder with a secret beside it, and every kind of way out."""
    images = tmp_path / "images"
    hostile.write_folder(images / "sub", {"b.png": PNG}, [])
    (images / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "images-other").mkdir()
    (tmp_path / "images-other" / "c.png").write_bytes(PNG)
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "way").symlink_to(tmp_path)
    (images / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (images / "inside.png").symlink_to(images / "a.png")
    os.mkfifo(images / "pipe.png")
    return ImageFolder(str(images), 10_000)


@pytest.mark.parametrize("name", ["a.png", "sub/b.png", "sub/../a.png", "./a.png", "inside.png"])
def test_paths_inside(vault: ImageFolder, name: str) -> None:
    assert vault.read(name) == PNG


def test_absolute_path_inside(vault: ImageFolder, tmp_path: Path) -> None:
    assert vault.read(str(tmp_path / "images" / "a.png")) == PNG


HOSTILE_PATHS = [
    "../secret.png",
    "sub/../../secret.png",
    "link.png",
    "way/secret.png",
    "../images-other/c.png",
    "{tmp}/secret.png",
    "{tmp}/images/../secret.png",
    "/etc/passwd",
    "~/secret.png",
    "file://{tmp}/secret.png",
    "http://127.0.0.1:1/a.png",
    "https://169.254.169.254/latest",
    "s3://bucket/a.png",
    "data:image/png;base64,AAAA",
    "a\0.png",
    "",
    ".",
    "sub",
    "pipe.png",
    "dangling.png",
    "missing.png",
    "a.png/b.png",
    "x" * 5000,
    "\ud800.png",
]


@pytest.mark.parametrize("name", HOSTILE_PATHS, ids=lambda name: ascii(name)[:30])
def test_no_way_out(vault: ImageFolder, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real_open = os.open

    def spy(path: str, *rest: Any, **options: Any) -> int:
        opened.append(os.path.realpath(path))
        return real_open(path, *rest, **options)

    monkeypatch.setattr(os, "open", spy)
    with pytest.raises(ImageRefused) as caught:
        vault.read(name.replace("{tmp}", str(tmp_path)))
    assert caught.value.verdict is Verdict.IMAGE_MISSING
    assert caught.value.detail
    assert all(path.startswith(str(tmp_path / "images") + "/") for path in opened if "png" in path or "etc" in path)


def test_large_file_is_not_read(vault: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "images" / "large.png").write_bytes(b"x" * 10_001)
    with pytest.raises(ImageRefused) as caught:
        vault.read("large.png")
    assert caught.value.verdict is Verdict.IMAGE_TOO_MANY_BYTES


# Parquet -----------------------------------------------------------------------------------------------------------


def parquet(tmp_path: Path, table: dict[str, Any] | pa.Table, name: str = "t.parquet") -> Path:
    tmp_path.mkdir(parents=True, exist_ok=True)
    file = tmp_path / name
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), file)
    return file


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


# Others ------------------------------------------------------------------------------------------------------------


def test_pocket_pairs_are_read_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    def training_pairs(limit: int | None) -> Any:
        for number in range(limit or 5):
            yield SimpleNamespace(key=f"k{number}", image_bytes=bytes([number]), caption="c", meta={"n": number})

    module = ModuleType("adamllm_ray.pocket.domain")
    module.training_pairs = training_pairs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "adamllm_ray.pocket.domain", module)
    found = list(read_pairs(DataSection(format="pocket", limit=3)))
    assert [(pair.key, loaded(pair)) for pair in found] == [("k0", b"\0"), ("k1", b"\1"), ("k2", b"\2")]


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    folder = hostile.write_folder(tmp_path / "s", {}, [hostile.share_gpt("a.png", "C")])
    section = DataSection(path=str(folder))
    first = source_fingerprint(section)
    assert source_fingerprint(section) == first
    hostile.write_folder(folder, {}, [hostile.share_gpt("a.png", "D")])
    assert source_fingerprint(section) != first
    file = parquet(tmp_path / "p", {"image": [PNG], "caption": ["c"]})
    section = DataSection(format="parquet", path=str(file))
    first = source_fingerprint(section)
    parquet(tmp_path / "p", {"image": [PNG], "caption": ["d"]})
    assert source_fingerprint(section) != first


def test_pocket_fingerprint_is_its_code() -> None:
    print_of_code = source_fingerprint(DataSection(format="pocket"))
    assert len(print_of_code["pocket"]) == 16
