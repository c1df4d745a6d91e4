"""WebDataset: tar shards read by name; whatever a hostile shard holds, no file is made and no pickle is opened."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import DataSection
from adamllm_ray.data.sources import source_fingerprint, webdataset
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import SourceError
from tests import hostile
from tests.data.sources.reading import PNG, loaded, pairs

pytestmark = [pytest.mark.timeout(60), pytest.mark.guards]
Members = list[tuple[str | tarfile.TarInfo, bytes]]


def shard(file: Path, members: Members, mode: str = "w", **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode, **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def read(path: Path, ignored: Counter[str] | None = None, **options: Any) -> list[Any]:
    return pairs(path, ignored=ignored, format="webdataset", **options)


def test_text_and_json_captions(tmp_path: Path) -> None:
    shard(tmp_path / "b.tar", [("3.JPG", PNG), ("3.txt", b"Third.\n")])
    about = json.dumps({"caption": "First.", "score": 0.5}).encode()
    shard(tmp_path / "a.tar", [("d/1.png", PNG), ("d/1.json", about), ("d/2.json", about), ("d/2.png", PNG + b"2")])
    found = read(tmp_path)
    assert [(pair.source, pair.key, pair.caption) for pair in found] == [
        ("a.tar", "d/1", ""),
        ("a.tar", "d/2", ""),
        ("b.tar", "3", "Third."),
    ]
    assert json.loads(found[0].meta) == {"caption": "First.", "score": 0.5}
    found = read(tmp_path, webdataset={"caption": "json"})
    assert [pair.caption for pair in found] == ["First.", "First.", ""]
    assert json.loads(found[0].meta) == {"score": 0.5}
    assert [loaded(pair) for pair in found] == [PNG, PNG + b"2", PNG]


def test_suffixes_are_a_choice(tmp_path: Path) -> None:
    members: Members = [("1.thumb.jpg", b"small"), ("1.jpg", PNG), ("1.alt.txt", b"Alt."), ("1.txt", b"Text.")]
    file = shard(tmp_path / "a.tar", members)
    ignored: Counter[str] = Counter()
    [pair] = read(file, ignored, webdataset={"image": ["thumb.jpg"], "caption": "alt.txt"})
    assert (loaded(pair), pair.caption) == (b"small", "Alt.")
    assert ignored == {"suffix: jpg": 1, "suffix: txt": 1}


def test_incomplete_samples_are_rows(tmp_path: Path) -> None:
    long = json.dumps({"caption": "x" * (1 << 20)}).encode()
    members: Members = [
        ("lonely.txt", b"No image."),
        ("bare.png", PNG),
        ("large.png", b"x" * 2000),
        ("large.txt", b"Large."),
        ("two.png", PNG),
        ("two.jpg", b"other"),
        ("two.txt", b"Two."),
        ("list.png", PNG),
        ("list.json", b"[1]"),
        ("deep.png", PNG),
        ("deep.json", b"[" * 100_000),
        ("long.png", PNG),
        ("long.json", long),
        ("again.txt", b"One."),
        ("again.txt", b"Two."),
    ]
    file = shard(tmp_path / "a.tar", members)
    text = {pair.key: pair for pair in read(file, images={"max_bytes": 1000})}
    assert (text["lonely"].verdict, text["lonely"].caption) == (Verdict.IMAGE_MISSING, "No image.")
    assert (text["bare"].verdict, text["bare"].caption) == (None, "")
    assert text["large"].verdict is Verdict.IMAGE_TOO_MANY_BYTES
    assert (text["two"].detail, loaded(text["two"])) == ("first of 2 images", PNG)
    assert len(read(file)) == 9, "a key that comes twice is two rows"
    found = {pair.key: pair for pair in read(file, webdataset={"caption": "json"})}
    for key in ("list", "deep", "long"):
        assert found[key].verdict is Verdict.ROW_UNREADABLE
        assert found[key].detail


def test_hostile_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reliability test 53."""
    inside = tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    marker = tmp_path / "marker"
    bomb = pickle.dumps(hostile.Bomb(marker))
    members: Members = [
        ("../../x.png", PNG),
        ("../../x.txt", b"Up."),
        (f"{tmp_path}/y.png", PNG),
        (f"{tmp_path}/y.txt", b"Absolute."),
        special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "../../x.png"),
        special("device.png", tarfile.CHRTYPE),
        special("disk.png", tarfile.BLKTYPE),
        special("pipe.png", tarfile.FIFOTYPE),
        special("folder.png", tarfile.DIRTYPE),
        special("folder.png", tarfile.GNUTYPE_SPARSE),
        ("z.pkl", bomb),
        ("z.pt", bomb),
        ("z.pyd", bomb),
        ("z.png", PNG),
        ("z.txt", b"Pickles beside it."),
        ("nothing", b"at all"),
    ]
    file = shard(tmp_path / "shards" / "a.tar", members, format=tarfile.GNU_FORMAT)
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "load", None)
    before = sorted(tmp_path.rglob("*"))
    ignored: Counter[str] = Counter()
    found = read(file, ignored)
    assert [pair.caption for pair in found] == ["Up.", "Absolute.", "Pickles beside it."]
    assert all(loaded(pair) == PNG for pair in found)
    assert sorted(tmp_path.rglob("*")) == before
    assert not marker.exists()
    assert ignored == {
        "member: link": 2,
        "member: device": 2,
        "member: pipe": 1,
        "member: folder": 1,
        "member: special": 1,
        "suffix: pkl": 1,
        "suffix: pt": 1,
        "suffix: pyd": 1,
        "suffix: none": 1,
    }


def test_the_names_that_are_counted_stay_few(tmp_path: Path) -> None:
    ignored: Counter[str] = Counter()
    assert read(shard(tmp_path / "a.tar", [(f"a.x{n}", b"") for n in range(200)]), ignored) == []
    assert (len(ignored), ignored.total()) == (41, 200)


def test_compressed_shards_and_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = shard(tmp_path / "good.tar.gz", [("1.png", PNG), ("1.txt", b"One.")], "w:gz")
    assert [pair.caption for pair in read(good)] == ["One."]
    bomb = shard(tmp_path / "bomb.tgz", [("1.bin", b"\0" * (24 << 20)), ("2.png", PNG), ("2.txt", b"Two.")], "w:gz")
    assert bomb.stat().st_size < 100_000
    monkeypatch.setattr(webdataset, "FREE_BYTES", 1 << 20)
    with pytest.raises(SourceError, match="unpacks to more than 100 times its size"):
        read(bomb)


def test_many_members_take_no_memory(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", [(f"{n:06d}.cls", b"1") for n in range(20_000)])
    import tracemalloc

    tracemalloc.start()
    ignored: Counter[str] = Counter()
    assert read(file, ignored) == []
    assert tracemalloc.get_traced_memory()[1] < 3 << 20
    tracemalloc.stop()
    assert ignored == {"suffix: cls": 20_000}


def test_a_shard_that_breaks_off_is_named(tmp_path: Path) -> None:
    """At every block: tarfile alone would end quietly at a header, and the rest of the shard would be lost."""
    whole = shard(tmp_path / "whole.tar", [(f"{n}.{kind}", PNG) for n in range(3) for kind in ("png", "txt")])
    data = whole.read_bytes()
    content = 6 * (512 + -(-len(PNG) // 512) * 512)
    (tmp_path / "cut").mkdir()
    for length in range(512, content + 1, 512):
        (tmp_path / "cut" / "a.tar").write_bytes(data[:length])
        with pytest.raises(SourceError, match=r"cut/a\.tar"):
            read(tmp_path / "cut")
    (tmp_path / "cut" / "a.tar").write_bytes(data[: content + 1024])
    assert len(read(tmp_path / "cut")) == 3


def test_damaged_headers_and_other_files(tmp_path: Path) -> None:
    whole = shard(tmp_path / "whole.tar", [(f"{n}.{kind}", PNG) for n in range(3) for kind in ("png", "txt")])
    data = bytearray(whole.read_bytes())
    data[2 * (512 + -(-len(PNG) // 512) * 512) + 5] ^= 0xFF
    huge = tarfile.TarInfo("h")
    huge.type, huge.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    cases = {
        "flipped": bytes(data),
        "html": hostile.RARE["html"] * 100,
        "header": huge.tobuf(tarfile.GNU_FORMAT) + b"x" * 10_000,
        "empty": b"",
        "gzip": gzip.compress(whole.read_bytes())[:-100],
    }
    for name, content in cases.items():
        file = tmp_path / (f"{name}.tar.gz" if name == "gzip" else f"{name}.tar")
        file.write_bytes(content)
        with pytest.raises(SourceError, match=name):
            read(file)


def test_a_header_that_is_long_is_not_held(tmp_path: Path) -> None:
    """A name of 100 KB is a whole and valid header; one of 100 GB would be too."""
    file = shard(tmp_path / "a.tar", [("x" * 100_000 + ".png", PNG)], format=tarfile.GNU_FORMAT)
    with pytest.raises(SourceError, match="a header of 100005 bytes"):
        read(file)


def test_joined_shards_are_read_to_the_end(tmp_path: Path) -> None:
    one = shard(tmp_path / "1.tar", [("1.png", PNG), ("1.txt", b"One.")]).read_bytes()
    two = shard(tmp_path / "2.tar", [("2.png", PNG), ("2.txt", b"Two.")]).read_bytes()
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.tar").write_bytes(one + two)
    assert [pair.caption for pair in read(tmp_path / "both")] == ["One.", "Two."]


def test_fingerprint_follows_the_shards(tmp_path: Path) -> None:
    section = DataSection(format="webdataset", path=str(tmp_path))
    shard(tmp_path / "a.tar", [("1.png", PNG), ("1.txt", b"One.")])
    first = source_fingerprint(section)
    assert source_fingerprint(section) == first
    shard(tmp_path / "a.tar", [("1.png", PNG), ("1.txt", b"Two.")])
    assert source_fingerprint(section) != first
    with pytest.raises(SourceError, match=r"no \.tar file"):
        source_fingerprint(DataSection(format="webdataset", path=str(hostile.write_folder(tmp_path / "x", {}, []))))


def test_deeply_nested_json_costs_its_meta_only(tmp_path: Path) -> None:
    for depth in (300, 600, 900, 980, 2000):
        about = b'{"caption": "A pond.", "more": ' + b"[" * depth + b"]" * depth + b"}"
        file = shard(tmp_path / "a.tar", [("1.png", PNG), ("1.json", about), ("2.png", PNG), ("2.txt", b"A hill.")])
        found = read(file)
        assert [pair.key for pair in found] == ["1", "2"]
        json.loads(found[0].meta or "{}")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE, b"K", b"x"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_size_of_an_exabyte_is_refused_at_once(tmp_path: Path, kind: bytes, packed: bool) -> None:
    """tarfile looks for the next header behind it, a block at a time, without a thought of where the file ends."""
    good, bad = tarfile.TarInfo("1.png"), tarfile.TarInfo("1.txt")
    good.size, bad.size, bad.type = len(PNG), 1 << 60, kind
    body = good.tobuf() + PNG + b"\0" * (-len(PNG) % 512) + bad.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048
    file = tmp_path / ("a.tar.gz" if packed else "a.tar")
    file.write_bytes(gzip.compress(body) if packed else body)
    with pytest.raises(SourceError, match=r"promises more|100 times|a header of"):
        read(file)
