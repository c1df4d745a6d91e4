"""`adamllm submit` as a user types it: what is refused before anything is sent, what is printed, what it ends with.

With --cluster the server is not real (apiserver.py); with --address, tests/submission/test_ray_jobs.py has a real Ray.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from adamllm_ray.config import parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.exits import BUG, DONE, RESUMABLE, WRONG
from adamllm_ray.submission import apply, render
from adamllm_ray.submission.command import Target, hand_over
from tests.cluster.rendering import CLUSTER, kept, kustomize
from tests.submission.apiserver import ApiServer, serving
from tests.submission.test_follow import failed
from tests.submission.test_places import REMOTE

ROOT = Path(__file__).parents[2]
CONFIG = parse_config(REMOTE)
SECRETS = {  # of whoever submits: what a job needs of them comes from the cluster
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDPLANTED01",
    "AWS_SECRET_ACCESS_KEY": "planted-store-key-58213",
    "HF_TOKEN": "hf_plantedhubtoken58213",
    "RAY_AUTH_TOKEN": "planted-ray-token-58213",
}
SUCCEEDED = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The overlay gpu-h100 as kubectl rendered it last, with an image."""
    text = json.dumps(kept()["gpu-h100"]).replace("registry.example.com", "r.internal").replace("0" * 64, "1a" * 32)
    monkeypatch.setattr(render, "render", lambda _: json.loads(text))


class Recorder:
    """A cluster that takes everything and tells given states; a seam."""

    def __init__(self, *states: dict[str, Any]) -> None:
        self.made: list[Any] = []
        self.states = list(states)

    def create(self, manifest: Any) -> Any:
        self.made.append(copy.deepcopy(manifest))
        return {**manifest, "metadata": {**manifest["metadata"], "uid": "1"}}

    def own(self, config_map: Any, owner: Any) -> None:
        self.made.append("owned")

    def delete(self, config_map: Any) -> None:
        raise AssertionError

    def read_job(self, namespace: str, name: str) -> Any:
        assert name == self.made[1]["metadata"]["name"]
        return {"status": self.states.pop(0)}


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([{"jobDeploymentStatus": "Initializing"}, SUCCEEDED], DONE),
        ([failed(75)], RESUMABLE),
        ([failed(2)], WRONG),
        ([failed(1)], BUG),
    ],
)
def test_a_job_is_applied_and_followed(ready, monkeypatch, capsys, states, code):
    cluster = Recorder(*states)
    monkeypatch.setattr(apply, "kubernetes", lambda: cluster)
    monkeypatch.setattr("adamllm_ray.submission.follow.time.sleep", lambda _: None)
    assert hand_over("train", CONFIG, Target("gpu-h100")) == code
    config_map, job, owned = cluster.made
    assert (config_map["kind"], job["kind"], owned) == ("ConfigMap", "RayJob", "owned")
    said = capsys.readouterr()
    assert f"kubectl -n adamllm logs -f job/{job['metadata']['name']}" in said.err
    assert "DEPLOYMENT STATUS" in said.err
    assert said.out == ""


def test_without_following(ready, monkeypatch):
    cluster = Recorder()
    monkeypatch.setattr(apply, "kubernetes", lambda: cluster)
    assert hand_over("train", CONFIG, Target("gpu-h100", follow=False)) == DONE
    assert len(cluster.made) == 3


def test_ctrl_c_ends_the_watching_and_not_the_job(ready, monkeypatch, capsys):
    def interrupted(_namespace: str, _name: str) -> Any:
        raise KeyboardInterrupt

    cluster = Recorder()
    cluster.read_job = interrupted  # type: ignore[method-assign]
    monkeypatch.setattr(apply, "kubernetes", lambda: cluster)
    with pytest.raises(KeyboardInterrupt):
        hand_over("train", CONFIG, Target("gpu-h100"))
    assert "the job goes on: kubectl -n adamllm get rayjob run-train-" in capsys.readouterr().err


NOWHERE: dict[str, tuple[str, Target, dict[str, Any], str]] = {
    "no stage": ("polish", Target("gpu-h100"), {}, "there is no stage 'polish'"),
    "nowhere": ("train", Target(), {}, "say where to"),
    "two places": ("train", Target("gpu-h100", "http://head:8265"), {}, "say where to"),
    "no overlay": ("train", Target("gpu"), {}, "there is no overlay 'gpu'"),
    "a local path": ("train", Target("gpu-h100"), {"run": {"output": "runs/x"}}, "run.output: 'runs/x'"),
    "a path for Ray": ("train", Target(address="http://h:1"), {"run": {"output": "runs/x"}}, "run.output: 'runs/x'"),
    "no such GPUs": (
        "synthesize",
        Target(str(CLUSTER / "overlays" / "gpu-h100")),
        {"synthesis": {"engine": {"gpus_per_replica": 8}}},
        "no pod of this job's groups has more than 1",
    ),
    "a model of the hub": (
        "train",
        Target("gpu-h100", dry_run=True),
        {"models": {"base": f"org/name@{'a' * 40}"}},
        "models.base: 'org/name@aaaa",
    ),
    "no questions": ("evaluate", Target("gpu-h100"), {"evaluation": {}}, "nothing to evaluate"),
    "manifests for Ray": ("train", Target(address="http://h:1", dry_run=True), {}, "--address needs none"),
    "no address": ("train", Target(address="head:6379"), {}, "is not the address of a job API"),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_what_is_refused_before_anything_is_sent(name, monkeypatch):
    job, target, changed, said = NOWHERE[name]
    monkeypatch.setattr(render, "render", lambda _: kept()["gpu-h100"])
    monkeypatch.setattr(apply, "kubernetes", lambda: pytest.fail("somebody asked for a cluster"))
    with pytest.raises(ConfigError) as caught:
        hand_over(job, parse_config({**REMOTE, **changed}), target)
    assert said in str(caught.value)


def test_placeholders_and_unsafe_overlays_are_not_applied(monkeypatch):
    monkeypatch.setattr(apply, "kubernetes", lambda: pytest.fail("somebody asked for a cluster"))
    objects = copy.deepcopy(kept()["gpu-h100"])
    monkeypatch.setattr(render, "render", lambda _: objects)
    with pytest.raises(ConfigError, match=r"fill in cluster/site/kustomization\.yaml"):
        hand_over("train", CONFIG, Target("gpu-h100"))
    for each in objects:
        if each["kind"] == "RayJob":
            each["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] = "LoadBalancer"
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match="seen from outside"):
            hand_over("train", CONFIG, Target("gpu-h100", dry_run=dry_run))


def test_a_dry_run_is_yaml_and_a_word_about_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(render, "render", lambda _: kept()["gpu-h100"])
    monkeypatch.setattr(apply, "kubernetes", lambda: pytest.fail("somebody asked for a cluster"))
    assert hand_over("synthesize", CONFIG, Target("gpu-h100", dry_run=True)) == DONE
    said = capsys.readouterr()
    assert [each["kind"] for each in yaml.safe_load_all(said.out)] == ["ConfigMap", "RayJob"]
    assert "placeholder" in said.err


def adamllm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT), **environment}
    whole = [sys.executable, "-m", "adamllm_ray.cli", "submit", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, env=given, timeout=120)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(REMOTE))
    return path


def test_a_wrong_configuration_is_refused_before_anything_is_rendered(config):
    done = adamllm("train", str(config), "--cluster", "no-such-overlay", "--set", "training.epoch=2")
    assert done.returncode == WRONG
    assert "did you mean 'epochs'" in done.stderr
    assert "no-such-overlay" not in done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An overlay of a copy of cluster/ in which the image is filled in."""
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    file = tmp_path / "cluster" / "site" / "kustomization.yaml"
    file.write_text(file.read_text().replace("registry.example.com", "r.internal").replace("0" * 64, "1a" * 32))
    return tmp_path / "cluster" / "overlays" / "kueue"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with serving(ApiServer([{"jobDeploymentStatus": "Suspended"}, failed(75)])) as found:
        yield found


@pytest.mark.skipif(kustomize() is None, reason="no kubectl with kustomize 5 on this machine")
def test_the_whole_way_with_a_real_kubectl(config, site, server, tmp_path):
    environment = {"KUBECONFIG": str(server.kubeconfig(tmp_path)), "HOME": str(tmp_path), **SECRETS}
    printed = adamllm("train", str(config), "--cluster", str(site), "--dry-run", **environment)
    assert (printed.returncode, printed.stderr, server.calls) == (DONE, "", [])
    done = adamllm("train", str(config), "--cluster", str(site), "--set", "training.epochs=7", **environment)
    assert done.returncode == RESUMABLE
    assert "failed (AppFailed): replicas die" in done.stderr
    [(_, namespace, name)] = [key for key in server.objects if key[0] == "rayjobs"]
    sent = server.objects["configmaps", namespace, name]
    assert yaml.safe_load(sent["data"]["config.yaml"])["training"]["epochs"] == 7
    assert sent["metadata"]["ownerReferences"][0]["name"] == name
    rendered = list(yaml.safe_load_all(printed.stdout))[1]
    applied = server.objects["rayjobs", namespace, name]
    assert applied["spec"].keys() == rendered["spec"].keys()
    seen = [printed.stdout, printed.stderr, done.stdout, done.stderr, json.dumps(list(server.objects.values()))]
    assert [key for key in SECRETS.values() for text in seen if key in text] == []  # reliability test 60
