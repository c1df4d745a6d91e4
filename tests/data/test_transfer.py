"""Folders up and down, on disk and on an S3 server that breaks connections; large files in parts."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import S3Section
from adamllm_ray.data import storage, transfer
from tests.faulty import Fault, FaultProxy, share_of

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
FILES = {"a.bin": 3, "state/b.bin": 40_000, "state/deep/c.bin": transfer.PART_BYTES + 5_000_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for name, size in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(random.Random(name).randbytes(size))
    return root


@pytest.fixture(scope="module")
def proxy(bucket: Any) -> Iterator[FaultProxy]:
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as running:
        yield running


def content(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in transfer.files_below(root)}


def test_up_and_down_on_disk(folder: Path, tmp_path: Path) -> None:
    place = storage.resolve(str(tmp_path / "there"))
    transfer.upload(folder, place)
    assert content(tmp_path / "there") == content(folder)
    transfer.download(place, tmp_path / "back", ["state/b.bin"])
    assert transfer.files_below(tmp_path / "back") == ["state/b.bin"]


def test_up_and_down_on_s3_through_broken_connections(folder: Path, tmp_path: Path, proxy: FaultProxy) -> None:
    options = S3Section(endpoint=proxy.url, region="us-east-1", request_timeout_s=5.0)
    place = storage.resolve("s3://runs/up/folder", options)
    proxy.reset(share_of(0.4, Fault(status=503), Fault(cut=True)))
    transfer.upload(folder, place)
    assert storage.list_files(place) == sorted(FILES.items())
    transfer.download(place, tmp_path / "back")
    assert proxy.faults >= 2
    assert content(tmp_path / "back") == content(folder)
    proxy.reset()
    with pytest.raises(FileNotFoundError):
        transfer.download(place, tmp_path / "none", ["a.bin", "gone.bin"])
