"""Pushing a model to a server of our own that answers like a hub; the real one was never reached."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.errors import ConfigError, ModelError, StorageError
from adamllm_ray.models.card import refresh_card
from adamllm_ray.models.hub import push, push_dataset
from tests.models.test_card import _trained

pytestmark = pytest.mark.timeout(120)


class Hub:
    """What the server was told: created repositories (name -> private) and committed files."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.kinds: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()  # with which something was to be written
        self.asked = 0

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/api/repos/create":
            tree = json.loads(body)
            name = f"{tree['organization']}/{tree['name']}"
            if name in self.private:
                return 409, {"url": f"https://huggingface.co/{name}"}
            self.kinds[name] = tree.get("type") or "model"
            self.private[name] = tree["private"] if "private" in tree else tree.get("visibility") == "private"
            return 200, {"url": f"https://huggingface.co/{name}"}
        if method == "GET" and path.startswith(("/api/models/", "/api/datasets/")):
            name = "/".join(path.split("?")[0].split("/")[3:5])
            private = self.private[name]
            return 200, {"id": name, "private": private, "siblings": [], "tags": [], "sha": "0" * 40}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            kept = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": file["path"], **kept} for file in files]}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {
                "commitUrl": "https://huggingface.co/team/xray/commit/1",
                "commitOid": "1" * 40,
                "success": True,
            }
        return 404, {"error": path}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found.asked += 1
            if any(word in self.path for word in ("/create", "/preupload/", "/commit/")):
                found.tokens.add(self.headers.get("Authorization"))
            code, tree = found.answer(self.command, self.path, body)
            data = json.dumps(tree).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield found
    server.shutdown()
    server.server_close()


def test_the_signed_files_go_to_a_private_repository(tmp_path: Path, hub: Hub) -> None:
    config, run = _trained(tmp_path)
    refresh_card(config, run)
    done = push(run, "team/xray")
    model = Path(run.stage("train").path) / "model"
    assert hub.private == {"team/xray": True}
    assert hub.files == {path.name: path.read_bytes() for path in model.iterdir()}
    assert "README.md" in hub.files
    assert hub.tokens == {"Bearer hf_secret"}
    assert (done.files, done.bytes) == (3, sum(map(len, hub.files.values())))
    push(run, "team/xray")  # it exists now: a new commit


def test_a_public_repository_must_be_asked_for(tmp_path: Path, hub: Hub) -> None:
    _, run = _trained(tmp_path)
    hub.private["team/open"] = False
    with pytest.raises(ConfigError, match="is public"):
        push(run, "team/open")
    assert not hub.files
    push(run, "team/open", private=False)
    assert hub.files


def test_nothing_is_sent_without_being_asked_properly(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = _trained(tmp_path)
    with pytest.raises(ConfigError, match="org/name"):
        push(run, "../name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        push(run, "team/xray")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        push(run, "team/xray")
    assert not hub.asked


def test_a_damaged_or_missing_model_is_not_sent(tmp_path: Path, hub: Hub) -> None:
    _, run = _trained(tmp_path)
    (Path(run.stage("train").path) / "model" / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(StorageError, match="nothing was sent"):
        push(run, "team/xray")
    (Path(run.stage("train").path) / "manifest.json").unlink()
    with pytest.raises(ModelError, match="no trained model"):
        push(run, "team/xray")
    assert not hub.asked


def test_what_the_hub_says_is_passed_on(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = _trained(tmp_path)
    monkeypatch.setattr(hub, "answer", lambda *_: (403, {"error": "this token may only read"}))
    with pytest.raises(ModelError, match="may only read"):
        push(run, "team/xray")


def test_a_published_data_set_goes_to_a_data_set_repository(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "data" / "train-00000.parquet").write_bytes(b"rows")
    (tmp_path / "notes.txt").write_text("not published")
    done = push_dataset(str(tmp_path), ["README.md", "data/train-00000.parquet"], "team/waves")
    assert hub.private == {"team/waves": True}
    assert hub.kinds == {"team/waves": "dataset"}
    assert hub.files.keys() == {"README.md", "data/train-00000.parquet"}
    assert (done.files, done.bytes) == (2, sum(map(len, hub.files.values())))
    hub.private["team/open"] = False
    with pytest.raises(ConfigError, match="the dataset may be seen"):
        push_dataset(str(tmp_path), ["README.md"], "team/open")


def test_no_stage_can_push() -> None:
    """Only the verb of that name knows the module."""
    package = Path(__file__).parents[2] / "adamllm_ray"
    users = [path.name for path in package.rglob("*.py") if "models.hub" in path.read_text("utf-8")]
    assert users == ["products.py"]
