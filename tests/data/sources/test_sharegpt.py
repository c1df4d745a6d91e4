"""ShareGPT: every record becomes a pair or a verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import DataSection
from adamllm_ray.data import jsonfile
from adamllm_ray.data.sources import RawPair, read_pairs
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError
from tests import hostile
from tests.data.sources.reading import PNG, loaded, pairs

pytestmark = pytest.mark.timeout(60)


def one(tmp_path: Path, record: Any) -> RawPair:
    [pair] = pairs(hostile.write_folder(tmp_path / "one", {"a.png": PNG}, [record]))
    return pair


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


@pytest.mark.parametrize("depth", [10, 300, 480, 500, 900, 960, 980, 990, 1000, 2000])
def test_deeply_nested_records_are_rows(tmp_path: Path, depth: int) -> None:
    nest = "[" * depth + "]" * depth
    lines = [nest, f'{{"more": {nest}}}', f'{{"image": "a.png", "caption": "A pond.", "more": {nest}}}']
    found = pairs(hostile.write_folder(tmp_path, {"a.png": PNG}, lines), format="sharegpt")
    assert len(found) == 3
    for pair in found:
        json.loads(pair.meta or "")


def test_numbers_beyond_float_do_not_reach_meta(tmp_path: Path) -> None:
    lines = ["-1e999", '{"score": 1e999}', '{"image": "a.png", "caption": "A pond.", "score": [1e999, 1]}']
    found = pairs(hostile.write_folder(tmp_path, {"a.png": PNG}, lines), format="sharegpt")
    assert [json.loads(pair.meta or "") for pair in found] == [{"value": None}, {"score": None}, {"score": [None, 1]}]


@pytest.mark.parametrize("chars", range(1, 24))
def test_numbers_go_on_behind_the_edge_of_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chars: int
) -> None:
    monkeypatch.setattr(jsonfile, "_CHUNK_CHARS", chars)
    (tmp_path / "data.json").write_text("[1.5, -2e+3,10E-1 ,0.25e2\n, 12, 7]")
    found = pairs(tmp_path)
    assert [json.loads(pair.meta or "")["value"] for pair in found] == [1.5, -2000.0, 1.0, 25.0, 12, 7]
