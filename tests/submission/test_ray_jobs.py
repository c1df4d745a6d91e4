"""`adamllm submit --address` on real Ray clusters (`ray start`, token authentication), with real vLLM and moto's S3.

One run folder lives through two clusters. On the first its driver is killed in the middle; on the second, which knows
nothing of the first (KubeRay starts a job again on a new cluster), the same command goes on, and the raylet of
a worker node is killed under it. Rows lost: 0. Rows doubled: 0. Planted keys appear nowhere.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.exits import DONE, RESUMABLE, WRONG
from adamllm_ray.synthesis.watch import committed_rows
from tests.data.conftest import local_bucket
from tests.submission.clusters import ROOT, Cluster, running
from tests.synthesis.lives import short_folder

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

ROWS = 160
PATIENCE_S = 600.0
SECRETS = {"AWS_SECRET_ACCESS_KEY": "planted-store-key-58213", "HF_TOKEN": "hf_plantedhubtoken58213"}
ENGINE = "{max_model_len: 512, max_num_seqs: 4, kv_cache_gib: 0.25}"
CONFIG = f"""
run: {{name: jobs, output: "s3://runs/jobs"}}
data: {{format: pocket, limit: {ROWS}}}
synthesis: {{rows_per_block: 8, max_new_tokens: 128, engine: {ENGINE}}}
judge: {{few_shot: false, engine: {ENGINE}}}
"""


@dataclass
class World:
    """What all tests of this module share."""

    folder: Path
    run: RunFolder
    outputs: list[str] = field(default_factory=list)  # of every `adamllm submit`

    def submit(self, job: str, cluster: Cluster, *more: str, **environment: str) -> Submission:
        return Submission(self, job, cluster, [*more], cluster.credentials | environment)


class Submission:
    """An `adamllm submit` at work."""

    def __init__(self, world: World, job: str, cluster: Cluster, more: list[str], environment: dict[str, str]) -> None:
        self.world = world
        command = [sys.executable, "-m", "adamllm_ray.cli", "submit", job, str(world.folder / "run.yaml"), *more]
        own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
        self.process = subprocess.Popen(
            [*command, "--address", cluster.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=own | {"PYTHONPATH": str(ROOT)} | environment,
        )

    def end(self) -> tuple[int, list[str]]:
        """(exit code, lines)."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        self.world.outputs.append(out)
        return self.process.returncode, out.splitlines()

    def wait_for(self, rows: int) -> None:
        """Until so many rows are committed."""
        stage, stop = self.world.run.stage("synthesize"), time.monotonic() + PATIENCE_S
        while (done := committed_rows(stage)) < rows:
            assert self.process.poll() is None, "\n".join(self.end()[1])
            assert time.monotonic() < stop
            time.sleep(0.3)
        assert done < ROWS, "too late: everything is done"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with local_bucket(), short_folder() as folder, pytest.MonkeyPatch.context() as patch:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # moto's, a line per request
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        (folder / "run.yaml").write_text(CONFIG)
        yield World(folder, RunFolder("s3://runs/jobs"))


@pytest.fixture(scope="module")
def first(world: World) -> Iterator[Cluster]:
    with running(world.folder / "a") as cluster:
        yield cluster


ENTRIES = [
    ("GET", "/api/version"),
    ("GET", "/api/jobs/"),
    ("POST", "/api/jobs/"),
    ("GET", "/api/jobs/x/logs"),
    ("POST", "/api/jobs/x/stop"),
    ("PUT", "/api/packages/gcs/x.zip"),
    ("GET", "/api/cluster_status"),
    ("GET", "/api/v0/tasks"),
    ("GET", "/nodes?view=summary"),
    ("GET", "/logical/actors"),
    ("GET", "/api/v0/logs"),
    ("GET", "/api/serve/applications/"),
]


@pytest.mark.parametrize(("method", "path"), ENTRIES)
def test_the_dashboard_asks_for_the_token(first, method, path):
    assert first.get(path, method) == 401
    assert first.get(path, method, Authorization="Bearer " + "0" * 64) == 403


def test_with_the_token_it_answers(first):
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary"):
        assert first.get(path, Authorization=f"Bearer {first.token}") == 200


CALLS = {
    "gcs": ["/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "/ray.rpc.InternalKVGcsService/InternalKVKeys"],
    "client": ["/ray.rpc.RayletDriver/ClusterInfo", "/ray.rpc.RayletDriver/Init"],
}


@pytest.mark.parametrize("token", ["", "0" * 64])
@pytest.mark.parametrize(("server", "method"), [(server, method) for server in CALLS for method in CALLS[server]])
def test_ray_itself_asks_too(first, server, method, token):
    """Ports that speak gRPC: the GCS, by which a driver joins, and Ray's client. (Ray's own client says "timeout".)"""
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    port = first.port if server == "gcs" else first.client
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)  # the client's server comes last
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(method)(b"", timeout=20, metadata=metadata)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_with_the_token_ray_answers(first):
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{first.port}") as channel:
        call = channel.unary_unary(CALLS["gcs"][0])
        assert call(b"", timeout=20, metadata=[("authorization", f"Bearer {first.token}")])


@pytest.mark.parametrize("environment", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}])
def test_nothing_is_submitted_without_the_token(world, first, environment):
    without = {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_MODE": "disabled"} | environment
    code, lines = world.submit("ingest", first, **without).end()
    assert code == WRONG, lines
    assert "Set RAY_AUTH_TOKEN" in lines[-1]


def test_a_run_survives_its_driver_its_cluster_and_a_node(world, first):
    """Ingest and a killed synthesis on the first cluster, the rest on a fresh one."""
    counts = last(world.submit("ingest", first).end(), DONE)["counts"]
    assert counts["ingest"]["rows_in"] == ROWS
    ids = world.run.stage("ingest").row_ids()

    killed = world.submit("synthesize", first)
    killed.wait_for(ROWS // 8)
    os.kill(driver_of(world, first), signal.SIGKILL)
    code, lines = killed.end()
    assert code == RESUMABLE, lines
    saved = committed_rows(world.run.stage("synthesize"))
    assert 0 < saved < ROWS
    first.stop()

    with running(world.folder / "b") as second:
        resumed = world.submit("synthesize", second, RAY_AUTH_TOKEN=second.token, RAY_AUTH_TOKEN_PATH="")
        resumed.wait_for(saved + 16)
        second.kill_raylet(1)
        counts = last(resumed.end(), DONE)["counts"]["synthesize"]
        assert counts["rows_in"] == counts["kept"] + counts["rejected"] + counts["failed"] == ROWS
        again = world.submit("synthesize", second).end()
        assert last(again, DONE)["counts"]["synthesize"] == counts
    stage = world.run.stage("synthesize")
    assert sorted(stage.row_ids()) == sorted(ids)  # row_ids raises when one is there twice
    assert verify(stage, world.run.stage("ingest")) == []


def test_planted_keys_are_nowhere(world, first):
    """In what was printed, in the logs of Ray and of the drivers, in the run folder."""
    planted = [*SECRETS.values(), first.token]
    assert world.outputs
    found = [f"output {number}" for number, text in enumerate(world.outputs) if any(key in text for key in planted)]
    logs = [path for path in world.folder.rglob("*") if path.is_file() and path.suffix in (".log", ".out", ".err")]
    assert len(logs) > 20
    found += [str(path) for path in logs if any(key.encode() in path.read_bytes() for key in planted)]
    place = storage.resolve("s3://runs/jobs")
    for name, _ in storage.list_files(place):
        data = storage.read_small(place.child(name)) or b""
        found += [name for key in planted if key.encode() in data]
    assert found == []


def last(ended: tuple[int, list[str]], code: int) -> dict[str, Any]:
    """The JSON object at the end of a log, of a job that ended with ``code``."""
    got, lines = ended
    assert got == code, "\n".join(lines[-40:])
    line: dict[str, Any] = json.loads(lines[-1])
    assert line["exit_code"] == code
    return line


def driver_of(world: World, cluster: Cluster) -> int:
    """Process id of the newest `synthesize` driver on this machine that works in this cluster's folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                mine = cluster.folder.as_posix().encode() in (process / "environ").read_bytes()
            except OSError:
                continue
            if b"adamllm_ray.submission.driver" in words and words[0].endswith(b"python") and mine:
                found.append(int(process.name))
    assert len(found) == 1, found
    return found[0]
