"""`adamllm submit --address` on real Ray clusters (`ray start`, token authentication), with real vLLM and moto's S3.

Each stage of the quickstart, made small, as a job; one run folder lives through two clusters. On the first its driver
is killed in the middle, twice; the same command goes on at once on the same cluster, among the orphans of the dead
driver, and then on a second one that knows nothing of the first (KubeRay starts a job again on a new cluster). There
each node has a network namespace of its own, where this machine allows that. Under the job a whole node dies at one
blow; another one comes, and training, whose driver is killed too, evaluation and the pipeline follow. Rows lost: 0.
Rows doubled: 0. Planted keys appear nowhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.data.verify import verify
from adamllm_ray.exits import DONE, RESUMABLE, WRONG
from tests.submission.clusters import ROOT, Cluster, running
from tests.submission.networks import refusal
from tests.submission.submitting import PATIENCE_S, Submission, World
from tests.submission.submitting import world as make_world

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

ROWS, QUESTIONS, STEPS = 240, 24, 40
SECRETS = {"AWS_SECRET_ACCESS_KEY": "planted-store-key-58213", "HF_TOKEN": "hf_plantedhubtoken58213"}
ENGINE = "{max_model_len: 512, max_num_seqs: 4, kv_cache_gib: 0.25}"
CONFIG = f"""
run: {{name: jobs, output: "s3://runs/jobs"}}
data: {{format: pocket, limit: {ROWS}}}
synthesis: {{rows_per_block: 8, max_new_tokens: 128, engine: {ENGINE}}}
judge: {{few_shot: false, engine: {ENGINE}}}
training:
  {{workers: 2, epochs: 2, max_steps: {STEPS}, global_batch: 8, micro_batch: 4, max_length: 512, precision: fp32,
   checkpoint_every: 5}}
evaluation: {{task: pocket, limit: {QUESTIONS}, max_new_tokens: 48, bootstrap_samples: 200, engine: {ENGINE}}}
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with make_world(CONFIG, SECRETS) as made:
        yield made


@pytest.fixture(scope="module")
def first(world: World) -> Iterator[Cluster]:
    with running(world.folder / "a") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def second(world: World, first: Cluster) -> Iterator[Cluster]:
    first.stop()
    with running(world.folder / "b", world.network) as cluster:
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


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("path", ["/api/job_agent/jobs/", "/api/job_agent/jobs/x/stop"])
def test_the_agent_of_every_node_asks_for_it(first, node, path):
    """It takes jobs as the dashboard does, at a port of its own (52365 by default)."""
    first.wait_for_agent(node)
    assert first.get(path, "POST", agent=node) == 401
    assert first.get(path, "POST", agent=node, Authorization="Bearer " + "0" * 64) == 403


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


def test_ingest(world, first):
    counts = world.submit("ingest", first).last_line(DONE)["counts"]["ingest"]
    assert counts["rows_in"] == counts["kept"] + counts["rejected"] + counts["failed"] == ROWS


def test_the_same_command_goes_on_after_a_kill_of_its_driver(world, first):
    """On the same cluster and at once: replicas of the dead driver may still hold what the new ones need."""
    done = 0
    for _ in range(2):
        job = world.submit("synthesize", first)
        job.wait_until(lambda before=done: world.committed() > before + ROWS // 16)
        kill_driver(job)
        before, done = done, world.committed()
        assert before < done < ROWS


def test_a_new_cluster_goes_on_and_a_node_dies_at_one_blow(world, second):
    saved = world.committed()
    job = world.submit("synthesize", second, RAY_AUTH_TOKEN=second.token, RAY_AUTH_TOKEN_PATH="")
    job.wait_until(lambda: world.committed() >= saved + 16)
    assert world.committed() < ROWS, "too late: everything is done"
    second.lose(1)
    counts = job.last_line(DONE)["counts"]["synthesize"]
    assert counts["rows_in"] == counts["kept"] + counts["rejected"] + counts["failed"] == ROWS
    stage, ingest = world.run.stage("synthesize"), world.run.stage("ingest")
    assert sorted(stage.row_ids()) == sorted(ingest.row_ids())  # row_ids raises when one is there twice
    assert verify(stage, ingest) == []


def test_its_nodes_have_networks_of_their_own(world, second):
    if world.network is None:
        pytest.skip(f"all nodes were on this machine's loopback: {refusal()}")
    living = [str(node.pid) for node in second.nodes if node.poll() is None]
    assert len(living) == 2
    assert len({Path(f"/proc/{pid}/ns/net").readlink() for pid in [*living, "self"]}) == 3


def test_training_goes_on_after_a_kill_of_its_driver(world, second):
    second.replace()
    job = world.submit("train", second)
    job.wait_until(lambda: any(name.endswith("/complete.json") for name in world.names()))
    kill_driver(job)
    counts = world.submit("train", second).last_line(DONE)["counts"]["train"]
    manifest = world.run.stage("train").manifest()
    assert counts["rows_in"] == counts["kept"] + counts["rejected"] + counts["failed"] == ROWS
    assert manifest.extra["steps"] == STEPS
    (resumed,) = manifest.extra["resumed"]
    assert 0 < resumed < STEPS


def test_evaluation(world, second):
    counts = world.submit("evaluate", second).last_line(DONE)["counts"]["evaluate"]
    assert counts["rows_in"] == counts["kept"] == 2 * QUESTIONS


def test_the_pipeline_does_nothing_again(world, second):
    before, counts = world.files(), counts_of(world)
    assert world.submit("pipeline", second).last_line(DONE)["counts"] == counts
    after = world.files()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name for name in changed if name.split("/")[0] in counts} == set()


def test_the_entry_point_by_ray_s_own_command(world, second):
    command = ["ray", "job", "submit", "--address", second.address, "--working-dir", "jobs", "--", "python"]
    command[0] = str(Path(sys.executable).parent / command[0])
    done = subprocess.run(
        [*command, "pipeline.py", "--config", str(world.folder / "run.yaml")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | second.credentials,
    )
    world.outputs += [done.stdout, done.stderr]
    assert done.returncode == DONE, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('{"job"'))
    assert json.loads(line) == {"job": "pipeline", "exit_code": DONE, "counts": counts_of(world)}


def test_planted_keys_are_nowhere(world, first, second):
    """In what was printed, in the logs of Ray and of the drivers, in the run folder."""
    planted = [*SECRETS.values(), first.token, second.token]
    assert len(world.outputs) >= 8
    found = [f"output {number}" for number, text in enumerate(world.outputs) if any(key in text for key in planted)]
    logs = [path for path in world.folder.rglob("*") if path.is_file() and path.suffix in (".log", ".out", ".err")]
    assert len(logs) > 20
    found += [str(path) for path in logs if any(key.encode() in path.read_bytes() for key in planted)]
    found += [name for name, data in world.files().items() if any(key.encode() in data for key in planted)]
    assert found == []


def kill_driver(job: Submission) -> None:
    """kill -9, and the end that `adamllm submit` tells of."""
    os.kill(job.driver(), signal.SIGKILL)
    code, lines = job.end()
    assert code == RESUMABLE, lines


def counts_of(world: World) -> dict[str, dict[str, Any]]:
    """Of each finished stage, as a job's last line has them."""
    from adamllm_ray.exits import Outcome
    from adamllm_ray.submission.driver import last_line

    manifests = {name: world.run.stage(name).manifest() for name in ("ingest", "synthesize", "train", "evaluate")}
    return last_line("pipeline", Outcome(DONE, result=manifests))["counts"]
