"""The Dockerfile, read: nobody built it here."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.cluster.rendering import CLUSTER, kept

ROOT = CLUSTER.parent
TEXT = (CLUSTER / "Dockerfile").read_text("utf-8")


def problems(text: str) -> list[str]:
    """What is wrong with a Dockerfile for pods without root."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    words = [line.split(maxsplit=1) for line in lines]
    users = [value for verb, value in words if verb == "USER"]
    found = []
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        found.append("the last USER is not a number above 0, so Kubernetes cannot know that it is not root")
    arguments = dict(value.split("=", 1) for verb, value in words if verb == "ARG" and "=" in value)
    for image in (value.split()[0] for verb, value in words if verb == "FROM"):
        name = arguments.get(image.strip("${}"), image)
        if not re.search(r"@sha256:[0-9a-f]{64}$", name):
            found.append(f"FROM {name} is not pinned by digest")
    found += [f"ADD {value}: use COPY" for verb, value in words if verb == "ADD"]
    found += [f"{verb} {value} carries a secret" for verb, value in words if re.search(r"TOKEN|SECRET|PASSWORD", value)]
    return found


def test_it_is_fit_for_pods_without_root():
    assert problems(TEXT) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("USER 1000:1000", "USER root", "last USER"),
        ("USER 1000:1000", "USER adamllm", "last USER"),
        ("USER 1000:1000", "", "last USER"),
        ("@sha256:" + "0" * 64, "", "not pinned by digest"),
        ("COPY jobs", "ADD https://example.com/jobs.tar", "use COPY"),
        ("HF_HUB_OFFLINE=1", "HF_TOKEN=abc", "carries a secret"),
    ],
)
def test_a_broken_copy_is_seen(old, new, said):
    assert old in TEXT
    assert any(said in problem for problem in problems(TEXT.replace(old, new)))


def test_it_installs_the_repository_s_pins_for_the_interpreter_they_are_for():
    assert "requirements/${REQUIREMENTS}.txt" in TEXT
    assert "ARG REQUIREMENTS=gpu" in TEXT
    assert {path.name for path in (ROOT / "requirements").iterdir()} >= {"gpu.txt", "cpu.txt"}
    version = re.search(r"BASE=python:(\d\.\d+)", TEXT)[1]
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    assert allowed.startswith(f">={version}")


def test_the_rayjobs_start_what_the_image_has():
    assert "WORKDIR /opt/adamllm" in TEXT
    assert "COPY jobs ./jobs" in TEXT
    entrypoints = {each["spec"]["entrypoint"] for each in kept()["gpu-h100"] if each["kind"] == "RayJob"}
    for entrypoint in entrypoints:
        name = re.fullmatch(r"python /opt/adamllm/jobs/(\w+)\.py --config /etc/adamllm/config\.yaml", entrypoint)[1]
        assert name in {"ingest", "synthesize", "train", "evaluate", "tune", "pipeline"}


def test_nothing_gets_into_the_image_unnamed():
    lines = [line for line in (CLUSTER / "Dockerfile.dockerignore").read_text("utf-8").splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    copied = {path for line in re.findall(r"^COPY (.+) \S+$", TEXT, re.MULTILINE) for path in line.split()}
    assert {path.split("/")[0] for path in copied} == {line[1:] for line in lines if line.startswith("!")}
