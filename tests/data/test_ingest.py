"""Ingest: rows in == rows out, whatever the source holds and whenever the process dies."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data import ingest as ingest_module
from adamllm_ray.data.images import decode
from adamllm_ray.data.ingest import ingest
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.record import RECORD_SCHEMA, record_id
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.errors import FingerprintMismatch, SourceError, StorageError, TooManyFailures
from tests import hostile

pytestmark = pytest.mark.timeout(120)


def config(tmp_path: Path, source: Path, **data: Any) -> RunConfig:
    section = {"path": str(source), "max_failed_share": 1.0, **data}
    return parse_config({"run": {"output": str(tmp_path / "run")}, "data": section})


def run_ingest(settings: RunConfig, **options: Any) -> tuple[Manifest, list[dict[str, Any]]]:
    run = RunFolder(settings.run.output)
    manifest = ingest(settings, run, **options)
    return manifest, read_rows(run)


def read_rows(run: RunFolder) -> list[dict[str, Any]]:
    parts = sorted(Path(run.stage("ingest").data).glob("*.parquet"))
    tables = [pq.read_table(part, page_checksum_verification=True) for part in parts]
    assert all(table.schema.equals(RECORD_SCHEMA) for table in tables)
    return pa.concat_tables(tables).to_pylist()


def numbered(tmp_path: Path, count: int) -> Path:
    """A source of ``count`` good pairs."""
    images = {f"{n}.png": hostile.good_png(n) for n in range(min(count, 20))}
    return hostile.write_folder(
        tmp_path / "source", images, [hostile.share_gpt(f"{n % 20}.png", f"caption {n}", n=n) for n in range(count)]
    )


BAD_INPUT: dict[str, tuple[bytes | None, str, str]] = {
    # name: (image, caption, verdict)
    "good": (hostile.good_png(1), "A pond.", "ok"),
    "missing": (None, "A pond.", "image_missing"),
    "truncated": (hostile.good_png(2)[:-300], "A pond.", "image_truncated"),
    "bomb": (hostile.bomb_png(20_000, 20_000), "A pond.", "image_too_many_pixels"),
    "sixteen": (hostile.ramp_png_16(), "A pond.", "ok"),
    "rotated": (hostile.exif_jpeg(6), "A pond.", "ok"),
    "animated": (hostile.animation("GIF", 3), "A pond.", "ok"),
    "html": (hostile.RARE["html"], "A pond.", "image_unrecognised"),
    "empty": (b"", "A pond.", "image_empty"),
    "no caption": (hostile.good_png(3), "", "caption_empty"),
    "white": (hostile.good_png(3), " \n\t\u200b\u00a0", "caption_empty"),
    "long": (hostile.good_png(4), "x" * (1 << 20), "caption_too_long"),
    "special": (hostile.good_png(5), hostile.SPECIAL_CAPTION, "ok"),
    "surrogate": (hostile.good_png(6), "a\ud83d b\0c \ud83d\ude00", "ok"),
    "unicode": (hostile.good_png(7), "\u202eRTL \u200d e\u0301\u0302\u0303 \U0001f600 \ufeff \x1b[31m", "ok"),
    "twice": (hostile.good_png(1), "A pond.", "duplicate"),
    "other text": (hostile.good_png(1), "A lake.", "ok"),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[str, dict[str, Any]], Path]:
    """Every kind of bad input in one source: (manifest, rows by name, folder)."""
    tmp_path = tmp_path_factory.mktemp("zoo")
    images = {f"{name}.png": image for name, (image, _, _) in BAD_INPUT.items() if image is not None}
    records: list[Any] = [hostile.share_gpt(f"{name}.png", text, name=name) for name, (_, text, _) in BAD_INPUT.items()]
    records.insert(5, '{"images": ["good.png"], "messages": [{"role"')
    manifest, rows = run_ingest(config(tmp_path, hostile.write_folder(tmp_path / "source", images, records)))
    return manifest, {json.loads(row["meta"]).get("name", "malformed"): row for row in rows}, tmp_path


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_a_recorded_verdict(name: str, zoo: tuple[Manifest, dict[str, Any], Path]) -> None:
    assert (zoo[1][name]["verdict"], name) == (BAD_INPUT[name][2], name)


def test_malformed_line_is_a_row(zoo: tuple[Manifest, dict[str, Any], Path]) -> None:
    row = zoo[1]["malformed"]
    assert (row["verdict"], row["key"]) == ("row_unreadable", "6")
    assert "line 6 is not JSON" in row["verdict_detail"]


def test_nothing_is_lost(zoo: tuple[Manifest, dict[str, Any], Path]) -> None:
    manifest, rows, _ = zoo
    assert manifest.rows_in == len(BAD_INPUT) + 1 == len(rows)
    assert manifest.kept + manifest.rejected + manifest.failed == manifest.rows_in
    assert (manifest.kept, manifest.rejected) == (8, 1)
    assert len({row["id"] for row in rows.values()}) == len(rows)
    for name, (image, _, _) in BAD_INPUT.items():
        assert rows[name]["image"] == image, "bytes are kept exactly as they came"


def test_ids_are_content(zoo: tuple[Manifest, dict[str, Any], Path]) -> None:
    row = zoo[1]["good"]
    assert row["id"] == record_id(row["image"], row["caption"], f"{row['source']}\x1f{row['key']}")


def test_captions_survive_byte_for_byte(zoo: tuple[Manifest, dict[str, Any], Path]) -> None:
    for name in ("special", "unicode", "long", "white"):
        assert zoo[1][name]["caption"] == BAD_INPUT[name][1]
    assert zoo[1]["surrogate"]["caption"] == "a\ufffd bc \U0001f600"
    assert zoo[1]["good"]["caption_instruction"] == "What is it?"


PIECES = [
    *("<|im_end|>", "<|im_start|>user\n", "<image>", "<|eot_id|>", "</s>", "\u202e", "\u200b", "\ufeff", "\ufffd"),
    *(
        "\0",
        "\ud83d",
        "\ude00",
        "\U0001f600",
        "e" + "\u0301" * 60,
        "\r\n",
        "\u2028",
        "\x1b[2J",
        "pond",
        " ",
        "\x7f",
        "\ue000",
    ),
]


def test_five_hundred_hostile_captions_come_through(tmp_path: Path) -> None:
    """Reliability test 29: byte for byte through Parquet, but for NUL and lone surrogates, which it cannot hold."""
    draw = random.Random(0)
    captions = ["".join(draw.choices(PIECES, k=draw.randint(1, 12))) for _ in range(500)]
    records = [hostile.share_gpt("a.png", caption, n=n) for n, caption in enumerate(captions)]
    source = hostile.write_folder(tmp_path / "s", {"a.png": hostile.good_png()}, records)
    manifest, rows = run_ingest(config(tmp_path, source, max_caption_chars=5000))
    assert manifest.rows_in == len(rows) == 500
    for caption, row in zip(captions, rows, strict=True):
        joined = caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON has two halves as one
        wanted = joined.replace("\0", "")
        assert row["caption"].encode() == wanted.encode()
        assert row["verdict"] in ("ok", "duplicate", "caption_empty")


def test_duplicate_names_its_original(zoo: tuple[Manifest, dict[str, Any], Path]) -> None:
    assert zoo[1]["twice"]["verdict_detail"] == f"same image and caption as {zoo[1]['good']['id']}"


def test_kept_images_decode_as_they_should(zoo: tuple[Manifest, dict[str, Any], Path]) -> None:
    limits = config(zoo[2], zoo[2]).data.images
    assert decode(zoo[1]["rotated"]["image"], limits).size == (64, 48)
    assert abs(np.asarray(decode(zoo[1]["sixteen"]["image"], limits)).mean() - 127.5) < 0.5


def test_rows_say_how_large_their_image_is_when_it_stands_upright(zoo: tuple[Manifest, dict[str, Any], Path]) -> None:
    """So that planning a training run has to look at no image."""
    limits = config(zoo[2], zoo[2]).data.images
    for row in zoo[1].values():
        decoded = row["verdict"] in ("ok", "duplicate") or row["verdict"].startswith("caption_")
        size = decode(row["image"], limits).size if decoded else (None, None)
        assert (row["width"], row["height"]) == size
    assert (zoo[1]["rotated"]["width"], zoo[1]["rotated"]["height"]) == (64, 48)


def test_heavy_image_is_not_stored(tmp_path: Path) -> None:
    source = hostile.write_folder(tmp_path / "s", {"a.png": hostile.good_png()}, [hostile.share_gpt("a.png", "C")])
    _, [row] = run_ingest(config(tmp_path, source, images={"max_bytes": 100}))
    assert (row["verdict"], row["image"]) == ("image_too_many_bytes", None)


def test_finished_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, numbered(tmp_path, 5))
    first, _ = run_ingest(settings)
    monkeypatch.setattr(ingest_module, "_examine", None)
    assert run_ingest(settings)[0] == first


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    source = numbered(tmp_path, 5)
    run_ingest(config(tmp_path, source))
    with pytest.raises(FingerprintMismatch, match=r"data\.max_caption_chars: folder has 20000, this run has 10"):
        run_ingest(config(tmp_path, source, max_caption_chars=10))
    numbered(tmp_path, 6)
    with pytest.raises(FingerprintMismatch, match=r"source\.sha256"):
        run_ingest(config(tmp_path, source))
    manifest, rows = run_ingest(config(tmp_path, source), force_new=True)
    assert manifest.rows_in == len(rows) == 6
    run_ingest(config(tmp_path, source, max_failed_share=0.1))  # a ceiling makes no other rows


def test_shards_are_cut_by_rows_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, numbered(tmp_path, 25), rows_per_shard=10)
    manifest, rows = run_ingest(settings)
    assert [Path(entry["path"]).name for entry in manifest.files] == [f"part-{n:05d}.parquet" for n in range(3)]
    assert [row["caption"] for row in rows] == [f"caption {n}" for n in range(25)]
    again, same = run_ingest(
        config(tmp_path, tmp_path / "source", shard_bytes=4 * len(rows[0]["image"])), force_new=True
    )
    assert again.extra["shards"] > 8
    assert same == rows
    assert again.extra["content"] == manifest.extra["content"]


def test_ceiling_stops_the_stage_and_names_the_reasons(tmp_path: Path) -> None:
    records = [hostile.share_gpt("gone.png", "C"), hostile.share_gpt("a.png", ""), *["{"] * 2]
    records += [hostile.share_gpt("a.png", f"C{n}") for n in range(6)]
    source = hostile.write_folder(tmp_path / "s", {"a.png": hostile.good_png()}, records)
    with pytest.raises(TooManyFailures) as caught:
        run_ingest(config(tmp_path, source, max_failed_share=0.3))
    message = str(caught.value)
    assert "4 of 10 records failed (40.0%; data.max_failed_share is 30.0%)" in message
    assert message.index("2 x row_unreadable") < message.index("1 x image_missing")
    assert "gone.png" in message
    assert RunFolder(str(tmp_path / "run")).stage("ingest").manifest() is None
    manifest, _ = run_ingest(config(tmp_path, source, max_failed_share=0.4))
    assert (manifest.kept, manifest.failed) == (6, 4)


def test_hopeless_source_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "EARLY_ROWS", 10)
    source = hostile.write_folder(tmp_path / "s", {}, ["{"] * 500)
    with pytest.raises(TooManyFailures, match="10 of 10 records failed"):
        run_ingest(config(tmp_path, source, max_failed_share=0.5))


def test_empty_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no records"):
        run_ingest(config(tmp_path, hostile.write_folder(tmp_path / "s", {}, [])))


def test_images_that_are_not_there(tmp_path: Path) -> None:
    """Reliability test 28: missing, a folder, a dangling link, a pipe, a file without permission; one row out each."""
    names = ("here.png", "missing.png", "folder.png", "dangling.png", "pipe.png", "closed.png")
    lines = [hostile.share_gpt(name, f"Caption of {name}") for name in names]
    source = hostile.write_folder(tmp_path / "s", {"here.png": hostile.good_png()}, lines)
    (source / "folder.png").mkdir()
    (source / "dangling.png").symlink_to(source / "nowhere.png")
    os.mkfifo(source / "pipe.png")
    (source / "closed.png").write_bytes(b"")
    (source / "closed.png").chmod(0)
    manifest, rows = run_ingest(config(tmp_path, source))
    assert [row["verdict"] for row in rows[:5]] == ["ok"] + ["image_missing"] * 4
    assert rows[5]["verdict"] in ("image_missing", "image_empty"), "root may read everything"
    assert manifest.rows_in == 6
    assert all(row["verdict_detail"] for row in rows[1:])


def test_repeated_keys_still_give_unique_ids(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [hostile.good_png()] * 4, "caption": ["c"] * 4, "k": ["same"] * 4}), file)
    manifest, rows = run_ingest(config(tmp_path, file, format="parquet", columns={"key": "k"}))
    assert [row["key"] for row in rows] == ["same", "same#2", "same#3", "same#4"]
    assert manifest.verdicts == {"ok": 1, "duplicate": 3}


def test_a_bug_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ingest_module.images, "examine", broken)
    with pytest.raises(ZeroDivisionError):
        run_ingest(config(tmp_path, numbered(tmp_path, 3)))
    assert RunFolder(str(tmp_path / "run")).stage("ingest").manifest() is None


# Death and full disks ----------------------------------------------------------------------------------------------

DRIVER = """
import sys, time
from adamllm_ray.config import parse_config
from adamllm_ray.data import ingest as module
from adamllm_ray.data.run import RunFolder
import json
settings = parse_config(json.loads(sys.argv[1]))
slow = module._examine
def _examine(pair, data):
    time.sleep(0.02)
    return slow(pair, data)
module._examine = _examine
module.ingest(settings, RunFolder(settings.run.output))
"""


@pytest.mark.parametrize("shards_before_death", [0, 2])
def test_kill_9_then_the_same_command(tmp_path: Path, shards_before_death: int) -> None:
    settings = config(tmp_path, numbered(tmp_path, 200), rows_per_shard=20)
    stage = RunFolder(settings.run.output).stage("ingest")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, settings.model_dump_json()])
    while not Path(stage.data).exists() or len(list(Path(stage.data).iterdir())) <= shards_before_death:
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert stage.manifest() is None
    manifest, rows = run_ingest(settings)
    assert manifest.rows_in == manifest.kept == len(rows) == 200
    fresh = config(tmp_path / "fresh", tmp_path / "source", rows_per_shard=20)
    whole, whole_rows = run_ingest(fresh)
    assert [row["id"] for row in rows] == [row["id"] for row in whole_rows]
    assert manifest.identity == whole.identity


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 256 KiB; skips where mounting is not allowed."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small filesystem needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_no_space_left_then_freed(tmp_path: Path, tiny_disk: Path) -> None:
    settings = parse_config(
        {
            "run": {"output": str(tiny_disk / "run")},
            "data": {"path": str(numbered(tmp_path, 20)), "rows_per_shard": 4},
        }
    )
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * (236 << 10))
    with pytest.raises(StorageError, match=r"no space left to write records .* run the same command again") as caught:
        run_ingest(settings)
    assert caught.value.exit_code == 75
    assert RunFolder(settings.run.output).stage("ingest").manifest() is None
    ballast.unlink()
    manifest, rows = run_ingest(settings)
    assert manifest.rows_in == manifest.kept == len(rows) == 20
    assert verify(RunFolder(settings.run.output).stage("ingest")) == []


def test_no_space_for_the_first_byte(tmp_path: Path, tiny_disk: Path) -> None:
    settings = config(tmp_path, numbered(tmp_path, 3)).model_copy(
        update={"run": config(tiny_disk, tmp_path).run},
    )
    with contextlib.suppress(OSError), (tiny_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(b"x" * 4096):
            pass
    with pytest.raises(StorageError, match="no space left"):
        run_ingest(settings)
    (tiny_disk / "ballast").unlink()
    assert run_ingest(settings)[0].kept == 3


def test_no_space_while_writing_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, numbered(tmp_path, 30), rows_per_shard=10)
    real, calls = pq.ParquetWriter.write_table, []

    def full(self: pq.ParquetWriter, table: pa.Table) -> None:
        calls.append(table)
        real(self, table)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(StorageError, match="no space left"):
            run_ingest(settings)
    assert RunFolder(settings.run.output).stage("ingest").manifest() is None
    assert run_ingest(settings)[0].kept == 30
