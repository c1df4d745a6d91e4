"""Models that are not on this disk: from an S3 server (moto) and from a server that speaks the hub's protocol."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from adamllm_ray.data import storage
from adamllm_ray.errors import ModelError, StorageError
from adamllm_ray.models import fetch
from adamllm_ray.models.checkpoint import model_fingerprint, model_identity, resolve_model

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def s3() -> Iterator[pafs.S3FileSystem]:
    """An S3 server of its own, reached as users reach theirs: through the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AWS_REGION", "us-east-1")
        fs = pafs.S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        fs.create_dir("models")
        yield fs
    server.stop()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAMLLM_MODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(fs: pafs.FileSystem, name: str, data: bytes) -> None:
    with fs.open_output_stream(f"models/{name}") as sink:
        sink.write(data)


def test_model_on_s3_is_fetched_once_and_is_the_same_model(s3: Any, cache: Path, tiny_judge: Path) -> None:
    for file in tiny_judge.iterdir():
        put(s3, f"judge/{file.name}", file.read_bytes())
    put(s3, "judge/pytorch_model.bin", b"pickle")
    put(s3, "judge/modeling_evil.py", b"code")
    put(s3, "judge/onnx/config.json", b"{}")
    spec = "s3://models/judge"
    assert model_identity(spec) == model_fingerprint(tiny_judge)
    assert not cache.exists()  # the fingerprint does not need the weights here

    with ThreadPoolExecutor(4) as replicas:
        folders = set(replicas.map(resolve_model, [spec] * 4))
    [folder] = folders
    assert Path(folder).parent == cache
    assert model_fingerprint(folder) == model_fingerprint(tiny_judge)
    assert {path.name for path in Path(folder).iterdir()} == {path.name for path in tiny_judge.iterdir()}

    put(s3, "judge/config.json", b" " + (tiny_judge / "config.json").read_bytes())
    assert resolve_model(spec) != folder
    assert model_fingerprint(spec) != model_fingerprint(tiny_judge)


def test_interrupted_download_goes_on_with_the_missing_files(
    s3: Any, cache: Path, tiny_judge: Path, monkeypatch
) -> None:
    for file in tiny_judge.iterdir():
        put(s3, f"cut/{file.name}", file.read_bytes())
    copied: list[str] = []
    real = fetch._copy

    def copy(fs: Any, info: pafs.FileInfo, folder: Path) -> None:
        if info.base_name == "model.safetensors" and "model.safetensors" not in copied:
            copied.append(info.base_name)
            (folder / "model.safetensors").write_bytes(b"half")  # what a power cut may leave
            raise OSError(5, "connection lost")
        real(fs, info, folder)

    monkeypatch.setattr(fetch, "_copy", copy)
    with pytest.raises(StorageError, match="fetch the model"):
        resolve_model("s3://models/cut")
    assert not [path for path in cache.iterdir() if not path.name.startswith(".")]
    assert model_fingerprint(resolve_model("s3://models/cut")) == model_fingerprint(tiny_judge)


def test_file_that_shrinks_under_the_download_is_not_taken(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    info = pafs.FileInfo(str(tmp_path / "model.safetensors"), pafs.FileType.File, size=9)
    (tmp_path / "to").mkdir()
    with pytest.raises(StorageError, match="5 of 9 bytes"):
        fetch._copy(storage.resolve(str(tmp_path)).fs, info, tmp_path / "to")
    assert not (tmp_path / "to" / "model.safetensors").exists()


def test_empty_place_on_s3(s3: Any, cache: Path) -> None:
    with pytest.raises(ModelError, match="no model at s3://models/nothing"):
        resolve_model("s3://models/nothing")


@pytest.mark.parametrize("spec", ["org/name", "org/name@main", f"org/name@{SHA[:39]}", "org/name@" + "G" * 40])
def test_hub_id_without_a_pinned_revision_is_refused(spec: str) -> None:
    with pytest.raises(ModelError, match="needs its revision"):
        resolve_model(spec)


def test_model_of_the_hub(cache: Path, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub itself against a server that speaks its protocol; no real hub was ever asked."""
    hub = Hub({path.name: path.read_bytes() for path in tiny_judge.iterdir()} | {"pytorch_model.bin": b"pickle"})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as in every replica
    with hub:
        folder = resolve_model(f"org/judge@{SHA}")
        asked = len(hub.asked)
        assert resolve_model(f"org/judge@{SHA}") == folder
        assert len(hub.asked) == asked
        with pytest.raises(ModelError, match="cannot fetch org/other"):
            resolve_model(f"org/other@{SHA}")
    assert model_fingerprint(folder) == model_fingerprint(tiny_judge)
    assert {path.name for path in Path(folder).iterdir()} == {path.name for path in tiny_judge.iterdir()}
    assert not any("pytorch_model" in path for path in hub.asked)


class Hub:
    """The three requests of snapshot_download: what is in the revision, a file's size and tag, a file."""

    def __init__(self, files: dict[str, bytes]) -> None:
        hub, self.asked = self, []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.asked.append(self.path)
                name = self.path.removeprefix(f"/org/judge/resolve/{SHA}/")
                body = files.get(name)
                if self.path.startswith(f"/api/models/org/judge/revision/{SHA}"):
                    siblings = [{"rfilename": each} for each in files]
                    body = json.dumps({"id": "org/judge", "sha": SHA, "siblings": siblings}).encode()
                elif self.path.startswith(f"/api/models/org/judge/tree/{SHA}"):
                    tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()]
                    body = json.dumps(tree).encode()
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.send_header("Content-Type", "application/json")
                self.send_header("ETag", f'"{len(body or b""):040x}"')
                self.send_header("X-Repo-Commit", SHA)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            do_GET = do_HEAD

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
