"""`adamllm submit --address` as a user's process, on one run folder in moto's S3, and what its jobs left behind."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.data import storage
from adamllm_ray.data.run import RunFolder
from adamllm_ray.synthesis.watch import committed_rows
from tests.buckets import local_bucket
from tests.processes import everybody, words_of
from tests.submission.clusters import ROOT, Cluster
from tests.submission.networks import Network, network
from tests.synthesis.lives import short_folder

OUTPUT = "s3://runs/jobs"
PATIENCE_S = 600.0


@dataclass
class World:
    """What all tests of a module share: the run, the secrets' hiding places, and the network if there is one."""

    folder: Path
    run: RunFolder
    network: Network | None
    outputs: list[str] = field(default_factory=list)  # of every `adamllm submit`

    def submit(self, job: str, cluster: Cluster, **environment: str) -> Submission:
        """Start it; ``environment`` on top of what the cluster's users have."""
        return Submission(self, job, cluster, cluster.credentials | environment)

    def names(self) -> list[str]:
        """Of all files in the run folder."""
        return [name for name, _ in storage.list_files(storage.resolve(OUTPUT))]

    def files(self) -> dict[str, bytes]:
        """Everything in the run folder."""
        place = storage.resolve(OUTPUT)
        return {name: storage.read_small(place.child(name)) or b"" for name in self.names()}

    def committed(self) -> int:
        """Synthesized rows that are safe."""
        return committed_rows(self.run.stage("synthesize"))


@contextmanager
def world(config: str, secrets: dict[str, str]) -> Iterator[World]:
    """A bucket that nodes reach in their namespaces too, the configuration, and secrets in everybody's environment."""
    with network() as net, local_bucket(net.address(1) if net else "127.0.0.1"), short_folder() as folder:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # moto's, a line per request
        with pytest.MonkeyPatch.context() as patch:
            for name, value in secrets.items():
                patch.setenv(name, value)
            if net:
                patch.setenv("NO_PROXY", ",".join(["127.0.0.1", *net.addresses]))
            (folder / "run.yaml").write_text(config)
            yield World(folder, RunFolder(OUTPUT), net)


class Submission:
    """An `adamllm submit` at work."""

    def __init__(self, world: World, job: str, cluster: Cluster, environment: dict[str, str]) -> None:
        self.world, self.job, self.cluster = world, job, cluster
        command = [sys.executable, "-m", "adamllm_ray.cli", "submit", job, str(world.folder / "run.yaml")]
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

    def last_line(self, code: int) -> dict[str, Any]:
        """The JSON object at the end of the log of a job that ends with ``code``."""
        got, lines = self.end()
        assert got == code, "\n".join(lines[-40:])
        line: dict[str, Any] = json.loads(lines[-1])
        assert (line["job"], line["exit_code"]) == (self.job, code)
        return line

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Poll while the job works; fail when it ends before."""
        stop = time.monotonic() + PATIENCE_S
        while not ready():
            assert self.process.poll() is None, "\n".join(self.end()[1])
            assert time.monotonic() < stop
            time.sleep(0.3)

    def driver(self) -> int:
        """Process id of this job's driver: of the only one that works in this cluster's folder."""
        found = []
        for pid in everybody():
            try:
                words = words_of(pid)
                mine = self.cluster.folder.as_posix().encode() in Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if "adamllm_ray.submission.driver" in words and words[0].endswith("python") and mine:
                found.append(pid)
        assert len(found) == 1, found
        return found[0]
