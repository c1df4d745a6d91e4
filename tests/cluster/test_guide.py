"""docs/kuberay.md against what is in the repository: what its commands set, and what whoever types them may do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

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
