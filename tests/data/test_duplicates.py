"""Duplicates: exact ones always, near ones on request; none is lost, and the index misses nothing."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adamllm_ray.config import parse_config
from adamllm_ray.data.duplicates import Duplicates, NearHashes, perceptual_hash
from adamllm_ray.data.ingest import ingest
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError
from tests import hostile

pytestmark = pytest.mark.timeout(120)
HASH = st.integers(min_value=0, max_value=2**64 - 1)


def scene(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A picture with something in it: coarse random blocks, scaled up smoothly."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


@settings(max_examples=60, deadline=None, database=None)
@given(
    hashes=st.lists(HASH, min_size=1, max_size=30), query=HASH, flips=st.integers(0, 14), distance=st.integers(0, 11)
)
def test_the_index_finds_what_comparing_all_pairs_finds(
    hashes: list[int], query: int, flips: int, distance: int
) -> None:
    """The query is one of the hashes with some bits flipped, so that hits and near misses both occur."""
    draw = random.Random(query)
    value = draw.choice(hashes)
    for bit in draw.sample(range(64), flips):
        value ^= 1 << bit
    index = NearHashes(distance)
    for number, known in enumerate(hashes):
        index.add(known, number.to_bytes(16, "big"))
    near = [((known ^ value).bit_count(), number) for number, known in enumerate(hashes)]
    best = min(pair for pair in near)
    wanted = (best[0], best[1].to_bytes(16, "big")) if best[0] <= distance else None
    assert index.nearest(value) == wanted
    inside = sorted(one for one in near if one[0] <= distance)
    assert index.near(value, 3) == [(bits, number.to_bytes(16, "big")) for bits, number in inside[:3]]


def test_copies_are_near_and_others_are_far() -> None:
    original = perceptual_hash(scene(1))
    copies = [
        Image.open(io.BytesIO(hostile.encode(scene(1), "JPEG", quality=60))),
        scene(1).resize((60, 45)),
        scene(1).point(lambda value: min(255, int(value * 1.05))),
    ]
    assert max((perceptual_hash(copy) ^ original).bit_count() for copy in copies) <= 4
    assert min((perceptual_hash(scene(seed)) ^ original).bit_count() for seed in range(2, 40)) > 10


def run(tmp_path: Path, records: list[Any], images: dict[str, bytes], **data: Any) -> tuple[Manifest, list[Any]]:
    import pyarrow.parquet as pq

    source = hostile.write_folder(tmp_path / "source", images, records)
    settings = parse_config({"run": {"output": str(tmp_path / "run")}, "data": {"path": str(source), **data}})
    folder = RunFolder.of(settings.run)
    manifest = ingest(settings, folder, force_new=True)
    return manifest, pq.read_table(folder.stage("ingest").data).to_pylist()


def test_near_duplicates_are_marked_and_name_the_original(tmp_path: Path) -> None:
    images = {
        "a.png": hostile.encode(scene(1)),
        "b.jpg": hostile.encode(scene(1), "JPEG", quality=70),
        "c.png": hostile.encode(scene(2)),
        "d.webp": hostile.encode(scene(1, (90, 68)), "WEBP", quality=80),
    }
    records = [hostile.share_gpt(name, f"Caption of {name}") for name in ("a.png", "b.jpg", "c.png", "d.webp", "a.png")]
    records.append(hostile.share_gpt("a.png", "Caption of a.png"))
    records.append(hostile.share_gpt("a.png", "Another caption"))
    manifest, rows = run(tmp_path, records, images, near_duplicates=6)
    assert [row["verdict"] for row in rows] == [
        "ok",
        "near_duplicate",
        "ok",
        "near_duplicate",
        "duplicate",
        "duplicate",
        "near_duplicate",
    ]
    assert manifest.rejected == 5
    for row in (rows[1], rows[3]):
        assert row["verdict_detail"].endswith(f"of 64 bits from {rows[0]['id']}")
        assert row["image"], "the bytes stay"
    assert rows[6]["verdict_detail"] == f"image differs in 0 of 64 bits from {rows[0]['id']}"
    ids = [row["id"] for row in rows]
    plain, rows = run(tmp_path, records, images)
    assert plain.verdicts == {"ok": 5, "duplicate": 2}
    assert [row["id"] for row in rows] == ids, "ids do not depend on it"


def test_one_percent_of_repeated_ids(tmp_path: Path) -> None:
    """Reliability test 30: identical rows under one key get ids of their own, and are named in the manifest."""
    images = {f"{n}.png": hostile.good_png(n) for n in range(4)}
    records = [hostile.share_gpt(f"{n % 4}.png", f"Caption {n - n % 100 if n % 100 < 2 else n}.") for n in range(400)]
    for n in range(0, 400, 100):
        records[n + 1] = records[n]
    manifest, rows = run(tmp_path, records, images)
    assert (manifest.rows_in, manifest.verdicts) == (400, {"ok": 396, "duplicate": 4})
    assert len({row["id"] for row in rows}) == 400
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        if row["verdict"] == "duplicate":
            original = by_id[row["verdict_detail"].rpartition(" ")[2]]
            assert (original["image"], original["caption"]) == (row["image"], row["caption"])


def test_keys_that_repeat_are_numbered() -> None:
    duplicates = Duplicates()
    rows = [{"source": "s", "key": "k", "image": b"i", "caption": "c", "verdict": "ok"} for _ in range(3)]
    for row in rows:
        duplicates.mark(row, None)
    assert [row["key"] for row in rows] == ["k", "k#2", "k#3"]
    assert [row["verdict"] for row in rows] == ["ok", "duplicate", "duplicate"]


@pytest.mark.parametrize("distance", [-1, 8, 1.5, "4"])
def test_impossible_distances(distance: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.near_duplicates"):
        parse_config({"run": {"output": "x"}, "data": {"near_duplicates": distance}})
