"""S3 by configuration, and its faults: real bytes from and to a server that misbehaves (reliability tests 37-39)."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import RunConfig, S3Section, parse_config
from adamllm_ray.data import s3, storage
from adamllm_ray.data.ingest import ingest
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.errors import ConfigError, SourceError, StorageError
from tests import hostile
from tests.faulty import Fault, FaultProxy, share_of

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
ROWS = 12
PNG = [hostile.good_png(n) for n in range(ROWS)]


@pytest.fixture(scope="module")
def proxy(bucket: Any) -> Iterator[FaultProxy]:
    """A proxy before the server, which holds one source in three formats."""
    lines = [json.dumps(hostile.share_gpt(f"{n}.png", f"Caption {n}.")) for n in range(ROWS)]
    bucket.put_object(Key="share/data.jsonl", Body="\n".join(lines).encode())
    for number, image in enumerate(PNG):
        bucket.put_object(Key=f"share/{number}.png", Body=image)
    sink = io.BytesIO()
    captions = [f"Caption {n}." for n in range(ROWS)]
    pq.write_table(pa.table({"image": PNG, "caption": captions}), sink, row_group_size=4)
    bucket.put_object(Key="table/t.parquet", Body=sink.getvalue())
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for number, image in enumerate(PNG):
            for name, content in ((f"{number}.png", image), (f"{number}.txt", captions[number].encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    bucket.put_object(Key="tar/a.tar", Body=shard.getvalue())
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as running:
        yield running


SOURCES = {"sharegpt": "share", "parquet": "table", "webdataset": "tar"}


def config(proxy: FaultProxy, output: str, kind: str = "sharegpt", timeout: float = 5.0, **data: Any) -> RunConfig:
    options = {"endpoint": proxy.url, "region": "us-east-1", "request_timeout_s": timeout}
    source = {"format": kind, "path": f"s3://runs/{SOURCES[kind]}", "s3": options, **data}
    return parse_config({"run": {"output": output, "s3": options}, "data": {"max_failed_share": 1.0, **source}})


def run(settings: RunConfig) -> tuple[Manifest, list[dict[str, Any]]]:
    """Ingest under the lock; returns the rows as the server has them, read without the proxy."""
    folder = RunFolder.of(settings.run)
    with folder.lock():
        manifest = ingest(settings, folder)
    direct = RunFolder(settings.run.output).stage("ingest")
    parts = [name for name, _ in storage.list_files(direct.place.child("data"))]
    tables = [pq.read_table(f"{direct.data}/{name}", filesystem=direct.fs) for name in parts]
    assert verify(direct) == []
    return manifest, pa.concat_tables(tables).to_pylist()


def check(manifest: Manifest, rows: list[dict[str, Any]]) -> None:
    assert (manifest.rows_in, manifest.kept) == (ROWS, ROWS)
    assert [row["image"] for row in rows] == PNG, "every byte, in order"
    assert len({row["id"] for row in rows}) == ROWS


@pytest.fixture(scope="module")
def undisturbed(proxy: FaultProxy) -> tuple[list[str], int]:
    """(ids, requests) of an ingest from S3 to S3 without a fault."""
    proxy.reset()
    manifest, rows = run(config(proxy, "s3://runs/undisturbed"))
    check(manifest, rows)
    return [row["id"] for row in rows], proxy.requests


def test_one_request_per_image(undisturbed: tuple[list[str], int]) -> None:
    assert undisturbed[1] < ROWS + 60  # the rest does not grow with the rows


@pytest.mark.parametrize("percent", [1, 10, 50])
def test_server_errors_are_tried_again(proxy: FaultProxy, undisturbed: tuple[list[str], int], percent: int) -> None:
    """Reliability test 37."""
    proxy.reset(share_of(percent / 100, Fault(status=503), Fault(status=500)))
    manifest, rows = run(config(proxy, f"s3://runs/errors-{percent}"))
    check(manifest, rows)
    assert [row["id"] for row in rows] == undisturbed[0]
    assert proxy.faults or percent == 1
    if percent <= 10:
        assert proxy.requests <= 5 * undisturbed[1]


def test_a_filesystem_does_not_tire_of_trying_again(proxy: FaultProxy) -> None:
    """Reliability test 37: Arrow's "standard" strategy gives up for good after a hundred retries."""
    section = S3Section(endpoint=proxy.url, region="us-east-1")
    proxy.reset(lambda method, path, times: Fault(status=503) if times % 2 == 0 else None)
    filesystem = s3.filesystem("runs", section)
    sizes = {filesystem.get_file_info("runs/table/t.parquet").size for _ in range(130)}
    assert len(sizes) == 1
    assert None not in sizes
    assert proxy.faults >= 130


@pytest.mark.parametrize("kind", SOURCES)
def test_hanging_cut_and_short_answers(proxy: FaultProxy, tmp_path: Path, kind: str) -> None:
    """Reliability test 38: tried again, and no truncated bytes accepted. 60 s is the longest any call may take."""
    proxy.reset(share_of(0.2, Fault(hang=3.0), Fault(cut=True), methods="GET"))
    check(*_to_disk(config(proxy, str(tmp_path / kind), kind, timeout=1.0)))
    assert proxy.faults
    assert S3Section().request_timeout_s + s3.CONNECT_TIMEOUT_S <= 60


def _to_disk(settings: RunConfig) -> tuple[Manifest, list[dict[str, Any]]]:
    folder = RunFolder.of(settings.run)
    manifest = ingest(settings, folder)
    return manifest, pq.read_table(folder.stage("ingest").data).to_pylist()


def test_a_short_answer_with_a_fitting_length(proxy: FaultProxy, tmp_path: Path) -> None:
    """Half of the bytes, and a header that says so: the checksum that the store keeps finds it."""
    proxy.reset(lambda method, path, times: Fault(short=True) if path.endswith("7.png") and not times else None)
    check(*_to_disk(config(proxy, str(tmp_path / "run"))))
    assert proxy.faults == 1


@pytest.mark.parametrize("kind", SOURCES)
def test_credentials_that_expire(proxy: FaultProxy, tmp_path: Path, kind: str) -> None:
    """Reliability test 39: stop with a resumable exit code, never turn the rest into missing images."""
    settings = config(proxy, str(tmp_path / kind), kind)
    last = {"sharegpt": "8.png", "parquet": "t.parquet", "webdataset": "a.tar"}[kind]
    proxy.reset(
        lambda method, path, times: Fault(status=403) if path.endswith(last) and (times or "8" in path) else None
    )
    with pytest.raises(StorageError, match=r"renew the credentials .* run the same command again") as caught:
        _to_disk(settings)
    assert caught.value.exit_code == 75
    assert RunFolder(settings.run.output).stage("ingest").manifest() is None
    proxy.reset()
    check(*_to_disk(settings))


def test_credentials_that_expire_for_the_run_folder(proxy: FaultProxy) -> None:
    settings = config(proxy, "s3://runs/expired")
    plan = share_of(1.0, Fault(status=403), methods="PUT POST")
    proxy.reset(lambda method, path, times: plan(method, path, times) if "part-" in path else None)
    with pytest.raises(StorageError, match="renew the credentials"):
        run(settings)
    proxy.reset()
    check(*run(settings))


def test_a_store_that_is_gone(proxy: FaultProxy, tmp_path: Path) -> None:
    options = {"endpoint": "http://127.0.0.1:9", "region": "us-east-1", "attempts": 2}
    for kind in SOURCES:
        with pytest.raises((StorageError, SourceError), match="s3://runs"):
            _to_disk(config(proxy, str(tmp_path / kind), kind, s3=options))


def test_missing_objects_are_verdicts(proxy: FaultProxy, bucket: Any, tmp_path: Path) -> None:
    names = ("0.png", "gone.png", "large.png", "../table/t.parquet", "x" * 2000)
    lines = [json.dumps(hostile.share_gpt(f"{name}", f"Caption {n}.")) for n, name in enumerate(names)]
    bucket.put_object(Key="odd/data.jsonl", Body="\n".join(lines).encode())
    bucket.put_object(Key="odd/0.png", Body=PNG[0])
    bucket.put_object(Key="odd/large.png", Body=b"x" * 50_000)
    proxy.reset()
    settings = config(proxy, str(tmp_path / "run"), path="s3://runs/odd", images={"max_bytes": 20_000})
    manifest, _ = _to_disk(settings)
    assert manifest.verdicts == {"ok": 1, "image_missing": 3, "image_too_many_bytes": 1}


def test_large_objects_are_not_read(proxy: FaultProxy, bucket: Any) -> None:
    bucket.put_object(Key="one/large", Body=b"x" * 100_000)
    options = S3Section(endpoint=proxy.url, region="us-east-1")
    with pytest.raises(s3.TooManyBytes, match="100000 bytes"):
        s3.fetch("runs/one/large", options, 99_999)
    assert len(s3.fetch("runs/one/large", options, 100_000)) == 100_000


def test_listing_reads_every_page(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        bucket.put_object(Key=f"pages/{number}", Body=b"x" * number)
    bucket.put_object(Key="pages/", Body=b"")
    assert list(s3.list_objects("runs/pages", S3Section())) == [(str(n), n) for n in range(5)]
    client = s3.client(S3Section())
    paginator = client.get_paginator("list_objects_v2")
    real = paginator.paginate
    monkeypatch.setattr(paginator, "paginate", lambda **options: real(PaginationConfig={"PageSize": 2}, **options))
    monkeypatch.setattr(client, "get_paginator", lambda name: paginator)
    assert [name for name, _ in s3.list_objects("runs/pages", S3Section())] == list("01234")


def test_anonymous_requests_carry_no_signature(proxy: FaultProxy, bucket: Any) -> None:
    signed = []
    proxy.reset()
    before = s3.client(S3Section(endpoint=proxy.url, region="us-east-1", anonymous=True))
    before.meta.events.register(
        "before-send.s3", lambda request, **_: signed.append("Authorization" in request.headers)
    )
    before.list_objects_v2(Bucket="runs", MaxKeys=1)
    assert signed == [False]
    bucket.put_object(Key="open/0.png", Body=PNG[0], ACL="public-read")
    place = storage.resolve("s3://runs/open/0.png", S3Section(endpoint=proxy.url, region="us-east-1", anonymous=True))
    assert storage.read_small(place) == PNG[0]


@pytest.mark.parametrize("path", ["s3://AKIAKEY:secretsecret@runs/x", "s3://a b/x", "s3://x/y", "s3://-x/y"])
def test_paths_that_are_no_bucket_or_hold_a_secret(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage.resolve(path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "http://key:hush@host"},
        {"endpoint": "ftp://host"},
        {"secret_key": "hush"},
        {"region": "hush hush"},
        {"attempts": 0},
        {"request_timeout_s": 0},
    ],
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.s3\.") as caught:
        parse_config({"run": {"output": "x"}, "data": {"s3": options}})
    assert "hush@" not in str(caught.value)


def test_a_planted_secret_is_nowhere(proxy: FaultProxy, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As reliability test 60: not in any object of the run, not in an error."""
    secret = "hush/PLANTED+secret0123456789abcdefghijkl"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED")
    s3._client.cache_clear()
    settings = config(proxy, "s3://runs/secret")
    proxy.reset()
    check(*run(settings))
    objects = [item.get()["Body"].read() for item in bucket.objects.filter(Prefix="secret/")]
    assert len(objects) >= 3
    proxy.reset(share_of(1.0, Fault(status=403)))
    with pytest.raises(StorageError) as caught:
        run(config(proxy, "s3://runs/secret-2"))
    everything = b"".join(objects) + str(caught.value).encode() + repr(caught.value.__cause__).encode()
    assert b"PLANTED" not in everything
    s3._client.cache_clear()
