"""The overlays of ``cluster/`` as objects: rendered by kubectl where there is one, else as it rendered them last.

    python -m tests.cluster.rendering          renew rendered.json.gz after a change in cluster/

Not every machine that runs the tests has a kubectl that knows components and replacements (Debian 12's does not), so
what a newer one printed is kept beside the tests. Where there is one, a test compares the two.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
KEPT = Path(__file__).parent / "rendered.json.gz"
OVERLAYS = ("gpu-h100", "gpu-spot", "cpu-dev", "kueue")
FOLDERS = {name: CLUSTER / name for name in ("platform", "monitoring")} | {
    name: CLUSTER / "overlays" / name for name in OVERLAYS
}
SINCE = (5, 0)  # of kustomize


@cache
def kustomize() -> tuple[str, ...] | None:
    """The command that renders a folder, or None where there is none, or only an old one."""
    if not shutil.which("kubectl"):
        return None
    said = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True).stdout
    version = json.loads(said or "{}").get("kustomizeVersion", "v0.0").lstrip("v").split(".")
    return ("kubectl", "kustomize") if (int(version[0]), int(version[1])) >= SINCE else None


def render(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization. Raises RuntimeError with what kubectl said."""
    command = kustomize()
    if command is None:
        raise RuntimeError(f"no kubectl with kustomize {SINCE[0]}.{SINCE[1]} or newer here")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise RuntimeError(done.stderr)
    return [each for each in yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if each]


@cache
def kept() -> dict[str, list[dict[str, Any]]]:
    """Objects of every folder as they were rendered last."""
    found: dict[str, list[dict[str, Any]]] = json.loads(gzip.decompress(KEPT.read_bytes()))
    return found


if __name__ == "__main__":
    text = json.dumps({name: render(folder) for name, folder in FOLDERS.items()}, sort_keys=True)
    KEPT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{KEPT}: {KEPT.stat().st_size} bytes")
