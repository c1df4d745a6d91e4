"""docs/kuberay.md against what is in the repository: what its commands set, and what whoever types them may do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.cluster.rendering import kept

GUIDE = (Path(__file__).parents[2] / "docs" / "kuberay.md").read_text("utf-8")


def commands(first: str) -> list[list[str]]:
    """Words of every command of the guide's blocks that starts with ``first``; continued lines are joined."""
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(first + " ")]


def test_a_head_may_be_away_for_as_long_as_a_new_machine_takes():
    """The operator's default of 300 s ends a job for good while its next head still pulls the image."""
    [install] = commands("helm install")
    values = dict(word.split("=", 1) for word in install if "=" in word)
    assert values["env[0].name"] == "RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS"
    assert int(values["env[0].value"]) >= 1800
    assert install[install.index("env[0].value=1800") - 1] == "--set-string"  # a number would be refused by Kubernetes


NEEDS = {  # of a command of sections 5 and 6, by its first words and their kind of object: (API group, resource, verb)
    "get rayjobs": [("ray.io", "rayjobs", "get"), ("ray.io", "rayjobs", "list")],
    "describe rayjob": [("ray.io", "rayjobs", "get"), ("", "events", "list")],
    "delete rayjob": [("ray.io", "rayjobs", "get"), ("ray.io", "rayjobs", "delete")],
    "logs job": [
        ("batch", "jobs", "get"),
        ("", "pods", "list"),
        ("", "pods", "watch"),
        ("", "pods", "get"),
        ("", "pods/log", "get"),
    ],
    "get pods": [("", "pods", "list"), ("", "pods", "get")],
    "describe pod": [("", "pods", "get"), ("", "events", "list")],
    "port-forward svc": [
        ("", "services", "get"),
        ("", "pods", "list"),
        ("", "pods", "get"),
        ("", "pods/portforward", "create"),
    ],
}
OTHERS = {"get secret", "describe workload"}  # the platform engineer's, and the guide says so


def of_a_scientist() -> set[str]:
    """Commands of "A run", "Watching" and the tables behind them, as a verb and a kind of object."""
    text = GUIDE[GUIDE.index("## 5. A run") :]
    found = re.findall(r"kubectl (?:-n adamllm )?(get|describe|delete|logs|port-forward) (?:-f )?([a-z]+)", text)
    return {f"{verb} {kind}" for verb, kind in found}


def test_a_scientist_may_do_what_the_guide_tells_them_to():
    [role] = [each for each in kept()["platform"] if each["kind"] == "Role"]
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert of_a_scientist() == NEEDS.keys() | OTHERS
    assert [need for needs in NEEDS.values() for need in needs if need not in allowed] == []
    assert not {resource for _, resource, _ in allowed} & {"secrets", "pods/exec"}
