"""Storage: the same run folder and sources on an S3 server (moto) as on disk, and errors a user can act on."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.data import storage
from adamllm_ray.data.ingest import ingest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.errors import FingerprintMismatch, StorageError
from tests import hostile

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_ingest_from_s3_to_s3(bucket: Any, tmp_path: Path) -> None:
    lines = [hostile.share_gpt(name, "A pond.") for name in ("a.png", "b.png", "gone.png", "../other/x.png")]
    folder = hostile.write_folder(tmp_path, {"a.png": hostile.good_png(1), "b.png": hostile.good_png(2)}, lines)
    for file in folder.iterdir():
        bucket.upload_file(str(file), f"source/{file.name}")
    bucket.put_object(Key="other/x.png", Body=hostile.good_png(3))
    data = {"path": "s3://runs/source/data.jsonl", "max_failed_share": 0.5}
    settings = parse_config({"run": {"output": "s3://runs/first"}, "data": data})
    run = RunFolder(settings.run.output)
    with run.lock():
        manifest = ingest(settings, run)
    assert manifest.verdicts == {"image_missing": 2, "ok": 2}
    assert ingest(settings, run) == manifest
    assert verify(run.stage("ingest")) == []
    assert {item.key for item in bucket.objects.filter(Prefix="first/ingest")} >= {
        "first/ingest/fingerprint.json",
        "first/ingest/manifest.json",
        "first/ingest/data/part-00000.parquet",
    }


def test_force_new_moves_objects_aside(bucket: Any) -> None:
    stage = RunFolder("s3://runs/second").stage("ingest")
    assert stage.begin({"a": 1}) == "fresh"
    with pytest.raises(FingerprintMismatch):
        stage.begin({"a": 2})
    assert stage.begin({"a": 2}, force_new=True) == "fresh"
    keys = sorted(item.key for item in bucket.objects.filter(Prefix="second/") if not item.key.endswith("/"))
    assert keys == ["second/ingest.old-1/fingerprint.json", "second/ingest/fingerprint.json"]


def test_missing_bucket_is_a_storage_error(bucket: Any) -> None:
    with pytest.raises(StorageError, match="no-such-bucket"):
        RunFolder("s3://no-such-bucket/x").stage("ingest").begin({"a": 1})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left to write"),
        (errno.EDQUOT, "free space there"),
        (errno.EACCES, "no permission to write"),
        (errno.EROFS, "choose another run.output"),
        (errno.ENOTDIR, "choose another run.output"),
        (errno.EIO, "run the same command again"),
    ],
)
def test_errors_say_what_to_do(code: int, words: str) -> None:
    with pytest.raises(StorageError, match=words) as caught, storage.storage_errors("write rows", "/runs/x"):
        raise OSError(code, os.strerror(code))
    assert "/runs/x" in str(caught.value)


def test_arrow_errors_are_storage_errors_and_others_are_not() -> None:
    with pytest.raises(StorageError, match="cannot read rows"), storage.storage_errors("read rows", "/runs/x"):
        raise pa.ArrowInvalid("bad footer")
    with pytest.raises(ZeroDivisionError), storage.storage_errors("read rows", "/runs/x"):
        raise ZeroDivisionError


def test_listing_leaves_temporary_files_out(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b", "sub/a", ".hidden.tmp", "sub/.c.tmp"):
        (tmp_path / name).write_bytes(b"123")
    assert storage.list_files(storage.resolve(str(tmp_path))) == [("b", 3), ("sub/a", 3)]
    assert storage.list_files(storage.resolve(str(tmp_path / "nowhere"))) == []
