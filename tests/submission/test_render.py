"""A run's objects from an overlay's templates, as kubectl rendered them last (tests/cluster/rendering.py)."""

from __future__ import annotations

import copy
import stat
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from adamllm_ray.config import load_config, parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.submission import kuberay, render
from adamllm_ray.submission.places import STAGES
from adamllm_ray.synthesis.pools import LIMITS
from tests.cluster.rendering import CLUSTER, OVERLAYS, kept, kustomize
from tests.cluster.schemas import completed, errors
from tests.submission.test_places import REMOTE

CONFIG = parse_config({**REMOTE, "run": {"name": "Xrays_2026.v2", "output": "s3://b/run"}})


def objects(job: str = "synthesize", overlay: str = "gpu-h100", **names: str) -> list[dict[str, Any]]:
    return render.run_objects(job, CONFIG, kept()[overlay], **names)


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [each["template"]["spec"] for each in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("job", STAGES)
def test_a_run_of_every_stage_keeps_the_rules(job, overlay):
    [config_map, rayjob] = made = objects(job, overlay)
    render.refuse_broken(made)
    assert errors(rayjob) == []
    assert kuberay.findings(completed(rayjob)) == []
    kubernetes_validate.validate(config_map, "1.32", strict=True)
    assert rayjob["metadata"]["labels"]["adamllm.io/stage"] == job
    assert config_map["metadata"]["name"] == rayjob["metadata"]["name"]
    assert config_map["metadata"]["namespace"] == rayjob["metadata"]["namespace"] == "adamllm"
    assert f"jobs/{job}.py --config /etc/adamllm/config.yaml" in rayjob["spec"]["entrypoint"]


def test_the_configuration_is_where_the_entry_point_looks(tmp_path):
    [config_map, rayjob] = objects()
    [(file, text)] = config_map["data"].items()
    (tmp_path / file).write_text(text)
    assert load_config(tmp_path / file) == CONFIG
    assert rayjob["spec"]["entrypoint"].endswith(f"/etc/adamllm/{file}")
    for pod in pods(rayjob):
        [volume] = [each for each in pod["volumes"] if each["name"] == "config"]
        assert volume["configMap"] == {"name": config_map["metadata"]["name"]}  # not optional: a pod waits for it
        mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
        assert mounts["config"] == "/etc/adamllm"


def test_the_rest_of_the_template_is_as_it_was():
    [_, rayjob] = objects(name="x")
    [template] = [each for each in kept()["gpu-h100"] if each["metadata"]["name"] == "adamllm-synthesize"]
    for pod in pods(rayjob):
        [volume] = [each for each in pod["volumes"] if each["name"] == "config"]
        volume["configMap"] = {"name": "adamllm-config", "optional": True}
    head = pods(rayjob)[0]["containers"][0]
    assert head["env"].pop()["name"] == LIMITS
    rayjob["metadata"]["name"] = "adamllm-synthesize"
    assert rayjob["metadata"]["labels"].pop("adamllm.io/run") == "Xrays_2026.v2"
    assert rayjob == template


@pytest.mark.parametrize("run", ["x", "Xrays_2026.v2", "2026", "a" * 64, "a.-_" * 16, "0" * 64])
@pytest.mark.parametrize("job", STAGES)
def test_a_name_that_kuberay_takes_and_nobody_had(run, job):
    names = {render.new_name(run, job) for _ in range(20)}
    assert len(names) == 20
    for name in names:
        assert f"-{job}-" in name
        spec = {"clusterSelector": {"ray.io/cluster": "c"}}
        assert kuberay.findings({"kind": "RayJob", "metadata": {"name": name}, "spec": spec}) == []


@pytest.mark.parametrize("run", ["a" * 64, "a" * 62 + "-b", "a.-_" * 16, "x"])
def test_a_label_that_kubernetes_takes(run):
    made = render.run_objects(
        "train", parse_config({**REMOTE, "run": {"name": run, "output": "s3://b/run"}}), kept()["gpu-h100"]
    )
    render.refuse_broken(made)
    for each in made:
        label = each["metadata"]["labels"]["adamllm.io/run"]
        assert len(label) <= 63
        assert run.startswith(label)


@pytest.mark.parametrize("label", ["a" * 64, "-a", "a b"])
def test_a_label_that_it_does_not_take(label):
    for number in (0, 1):
        made = objects()
        made[number]["metadata"]["labels"]["adamllm.io/run"] = label
        with pytest.raises(ConfigError, match=r"metadata\.labels: adamllm\.io/run=.* is no Kubernetes label"):
            render.refuse_broken(made)


def test_an_overlay_that_is_unsafe_is_refused_with_all_that_is_wrong():
    made = objects()
    pods(made[1])[0]["containers"][0]["image"] = "adamllm:latest"
    made[1]["spec"]["rayClusterSpec"]["authOptions"] = {"mode": "disabled"}
    made[1]["spec"]["backoffLimit"] = -1
    with pytest.raises(ConfigError, match=r"(?s)backoffLimit.*authOptions\.mode.*not named by digest"):
        render.refuse_broken(made)


def test_a_key_in_a_configuration_does_not_get_into_a_config_map():
    made = objects()
    made[0]["data"]["config.yaml"] += "\n# AKIAIOSFODNN7EXAMPLE\n"
    with pytest.raises(ConfigError, match="holds a key"):
        render.refuse_broken(made)


@pytest.mark.parametrize(
    "image",
    [f"registry.internal/adamllm@sha256:{'0' * 64}", f"registry.example.com/adamllm@sha256:{'1a' * 32}"],
)
def test_half_a_placeholder_is_one(image):
    made = objects()
    for pod in pods(made[1]):
        pod["containers"][0]["image"] = image
    assert image in render.unfilled(made)


def test_placeholders_are_seen():
    made = objects()
    [image] = render.unfilled(made)
    assert image.startswith("registry.example.com/adamllm@sha256:000")
    text = render.as_yaml(made).replace("registry.example.com", "registry.internal").replace("0" * 64, "1a" * 32)
    assert render.unfilled(list(yaml.safe_load_all(text))) == []


def test_yaml_reads_back_and_is_written_as_a_person_would():
    made = objects()
    text = render.as_yaml(made)
    assert list(yaml.safe_load_all(text)) == made
    assert "config.yaml: |\n    run:\n      name: Xrays_2026.v2\n" in text
    assert "&id" not in text


def test_an_overlay_without_the_stage_or_without_room_for_a_configuration():
    with pytest.raises(ConfigError, match=r"no RayJob labelled adamllm\.io/stage: train"):
        render.run_objects(
            "train", CONFIG, [each for each in kept()["gpu-h100"] if "train" not in each["metadata"]["name"]]
        )
    broken = copy.deepcopy(kept()["gpu-h100"])
    for each in broken:
        if each["metadata"]["name"] == "adamllm-train":
            pods(each)[2]["volumes"] = []
    with pytest.raises(ConfigError, match="the pods of trainer in this overlay have no volume 'config'"):
        render.run_objects("train", CONFIG, broken)


def test_overlays_by_name_and_by_path(tmp_path):
    assert render.overlay("gpu-h100", tmp_path) == CLUSTER / "overlays" / "gpu-h100"  # of the package's checkout
    mine = tmp_path / "cluster" / "overlays" / "gpu-h100"
    mine.mkdir(parents=True)
    assert render.overlay("gpu-h100", tmp_path) == mine  # the current folder's comes first
    (mine / "kustomization.yaml").touch()
    assert render.overlay(str(mine)) == mine
    with pytest.raises(ConfigError, match="no overlay 'gpu'; there are: cpu-dev, gpu-h100, gpu-spot, kueue"):
        render.overlay("gpu")


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("commands", "found"),
    [
        ({"kubectl": """echo '{"kustomizeVersion": "v5.0.1"}'"""}, ("kubectl", "kustomize")),
        ({"kubectl": "echo '{}'", "kustomize": "echo v5.4.3"}, ("kustomize", "build")),
        ({"kubectl": "exit 1"}, "kustomize of an unknown version"),
        ({"kubectl": """echo '{"kustomizeVersion": "v4.5.7"}'"""}, "kubectl on this machine has kustomize v4.5.7"),
        ({"kustomize": "echo '{Version:kustomize/v4.5.7}'"}, "the kustomize on this machine is"),
        ({}, "there is no kubectl and no kustomize"),
    ],
)
def test_what_renders_is_looked_for_and_what_is_missing_is_said(tmp_path, monkeypatch, commands, found):
    """The commands are scripts that only tell a version."""
    for name, script in commands.items():
        command(tmp_path, name, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    if isinstance(found, tuple):
        assert render.renderer() == found
    else:
        with pytest.raises(ConfigError, match=found):
            render.renderer()


@pytest.mark.skipif(kustomize() is None, reason="no kubectl with kustomize 5 on this machine")
def test_kubectl_renders_and_says_what_it_cannot(tmp_path):
    assert render.render(CLUSTER / "overlays" / "cpu-dev") == kept()["cpu-dev"]
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        render.render(tmp_path)
