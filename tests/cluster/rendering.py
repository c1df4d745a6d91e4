"""The overlays of ``cluster/`` as objects: rendered by kubectl where there is one, else as it rendered them last.

    python -m tests.cluster.rendering          renew rendered.json.gz after a change in cluster/

Not every machine that runs the tests has a kubectl that knows components and replacements (Debian 12's does not), so
what a newer one printed is kept beside the tests. Where there is one, a test compares the two.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from adamllm_ray.errors import ConfigError
from adamllm_ray.submission.render import render, renderer

CLUSTER = Path(__file__).parents[2] / "cluster"
KEPT = Path(__file__).parent / "rendered.json.gz"
OVERLAYS = ("gpu-h100", "gpu-spot", "cpu-dev", "kueue")
FOLDERS = {name: CLUSTER / name for name in ("platform", "monitoring")} | {
    name: CLUSTER / "overlays" / name for name in OVERLAYS
}


@cache
def kustomize() -> tuple[str, ...] | None:
    """The command that renders a folder, or None where there is none, or only an old one."""
    try:
        return renderer()
    except ConfigError:
        return None


@cache
def kept() -> dict[str, list[dict[str, Any]]]:
    """Objects of every folder as they were rendered last."""
    found: dict[str, list[dict[str, Any]]] = json.loads(gzip.decompress(KEPT.read_bytes()))
    return found


if __name__ == "__main__":
    text = json.dumps({name: render(folder) for name, folder in FOLDERS.items()}, sort_keys=True)
    KEPT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{KEPT}: {KEPT.stat().st_size} bytes")
