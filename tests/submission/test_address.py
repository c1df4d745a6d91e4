"""What `adamllm submit --address` says and reads; a real Ray cluster answers in test_ray_jobs.py."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from adamllm_ray.config import load_config, parse_config
from adamllm_ray.errors import ClusterError, ConfigError
from adamllm_ray.exits import BUG, DONE, RESUMABLE, WRONG
from adamllm_ray.submission import address
from adamllm_ray.submission.address import RayCluster
from tests.submission.test_places import REMOTE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing ray
CONFIG = parse_config(REMOTE)


class Client:
    """Ray's JobSubmissionClient with a job of which the test tells the log and the end; a seam."""

    def __init__(self, ends: list[Any], logs: list[list[str] | Exception]) -> None:
        self.ends, self.logs = ends, logs
        self.submitted: dict[str, Any] = {}

    def submit_job(self, **request: Any) -> str:
        self.submitted = request
        self.config = load_config(f"{request['runtime_env']['working_dir']}/config.yaml")
        return request["submission_id"]

    async def tail_job_logs(self, _name: str) -> AsyncIterator[str]:
        chunks = self.logs.pop(0)
        if isinstance(chunks, Exception):
            raise chunks
        for chunk in chunks:
            yield chunk

    def get_job_info(self, _name: str) -> Any:
        status, code = self.ends.pop(0)
        kind = type("Status", (str,), {"is_terminal": lambda self: self in ("SUCCEEDED", "FAILED", "STOPPED")})
        return SimpleNamespace(status=kind(status), driver_exit_code=code, message="the node is gone")


def cluster(monkeypatch: pytest.MonkeyPatch, ends: Any = (), logs: Any = ()) -> tuple[RayCluster, Client]:
    client = Client(list(ends), list(logs))
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda _: client)
    monkeypatch.setattr(address, "PAUSE_S", 0.0)
    return RayCluster("http://head:8265"), client


def test_what_is_sent(monkeypatch):
    ray, client = cluster(monkeypatch)
    name = ray.submit("train", CONFIG)
    assert client.config == CONFIG
    assert client.submitted["entrypoint"] == "python -m adamllm_ray.submission.driver train config.yaml"
    assert client.submitted["metadata"] == {"adamllm_job": "train", "adamllm_run": "run"}
    assert client.submitted["runtime_env"].keys() == {"working_dir"}  # no environment: Ray shows it to everybody
    assert name.startswith("run-train-")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (("SUCCEEDED", 0), DONE),
        (("FAILED", 1), BUG),
        (("FAILED", 2), WRONG),
        (("FAILED", 75), RESUMABLE),
        (("FAILED", 130), RESUMABLE),
        (("FAILED", None), RESUMABLE),
        (("STOPPED", None), RESUMABLE),
    ],
)
def test_what_an_end_means(monkeypatch, end, code):
    said: list[str] = []
    ray, _ = cluster(monkeypatch, [("RUNNING", None), end], [["one\ntw"], ["one\ntwo\n"]])
    assert ray.follow("x", said.append) == code
    assert said[:2] == ["one", "two"]
    assert any("the driver is lost: the node is gone" in line for line in said) == (end == ("FAILED", None))


def test_a_lost_connection_repeats_no_line_and_loses_none(monkeypatch):
    said: list[str] = []
    logs = [["a\nb", "c\nd\n"], RuntimeError("closed"), ["a\nbc\n", "d\ne\n", "f"]]
    ray, _ = cluster(monkeypatch, [("RUNNING", None), ("SUCCEEDED", 0)], logs)
    assert ray.follow("x", said.append) == DONE
    assert said == ["a", "bc", "d", "e", "f"]


def test_a_cluster_that_is_gone(monkeypatch):
    ray, _ = cluster(monkeypatch, [], [RuntimeError("closed")])
    monkeypatch.setattr(address, "PATIENCE_S", 0.0)
    with pytest.raises(ClusterError, match="closed"):
        ray.follow("x", print)


def test_the_address_that_is_given_is_the_one_that_is_asked(monkeypatch):
    """Ray would rather take RAY_ADDRESS. Nobody listens at port 1."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1 does not answer"):
        RayCluster("http://127.0.0.1:1")


@pytest.fixture
def refusing() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.asked.append(self.headers.get("Authorization"))  # type: ignore[attr-defined]
            self.send_error(401 if self.headers.get("Authorization") is None else 403)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_without_a_token_the_error_says_where_one_goes(refusing):
    with pytest.raises(ConfigError, match=r"Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH"):
        RayCluster(f"http://127.0.0.1:{refusing.server_port}")
