"""A Ray cluster as somebody would start it by hand: `ray start` for a head and worker nodes, token authentication on.

Each node is a process group of its own on this machine, so a node can be lost by SIGKILL, and nothing else on the
machine is touched (`ray stop` would end every Ray there is).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_S = 120.0  # of one node, on a busy machine
MEMORY = str(100 << 20)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """A head without CPUs, where drivers run, and ``workers`` nodes of ``cpus`` each."""

    folder: Path
    workers: int = 2
    cpus: int = 4  # Ray's book-keeping: what is left after one node is lost must hold the job
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    def start(self) -> None:
        """Start all nodes and wait for the job API."""
        self.port, self.dashboard, self.client = free_port(), free_port(), free_port()
        self.token_file.write_text(self.token)
        head = ["--head", "--num-cpus=0", f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
        head += [f"--ray-client-server-port={self.client}", "--include-dashboard=true", f"--temp-dir={self.folder}"]
        self._node("head", head)
        self._wait(1)
        for number in range(1, 1 + self.workers):  # one after the other: two at once take each other's sockets
            self._node(f"worker{number}", [f"--address=127.0.0.1:{self.port}", f"--num-cpus={self.cpus}"])
            self._wait(1 + number)

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def address(self) -> str:
        """Of the job API."""
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def credentials(self) -> dict[str, str]:
        """Environment of whoever may use it."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}

    def get(self, path: str, method: str = "GET", **headers: str) -> int:
        """Status of a request to the dashboard."""
        request = urllib.request.Request(f"{self.address}{path}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def kill_raylet(self, node: int) -> None:
        """SIGKILL to the raylet of a node: its workers notice and end, and `ray start` with them."""
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    words = (process / "cmdline").read_bytes().split(b"\0")
                    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                if parent == self.nodes[node].pid and words[0].endswith(b"/raylet"):
                    os.kill(int(process.name), signal.SIGKILL)
                    return
        raise AssertionError("this node has no raylet")

    def lose(self, node: int) -> None:
        """SIGKILL to everything of a node: `ray start`, its raylet and all workers."""
        os.killpg(self.nodes[node].pid, signal.SIGKILL)
        self.nodes[node].wait()

    def stop(self) -> None:
        """The same for all that are left."""
        for number, node in enumerate(self.nodes):
            if node.poll() is None:
                self.lose(number)

    def _node(self, name: str, arguments: list[str]) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *arguments]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # `python` of an entry point is this one
        environment = os.environ | self.credentials | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "10"}
        self.logs.append(self.folder / f"{name}.log")
        with self.logs[-1].open("wb") as log:
            made = subprocess.Popen(
                [*command, f"--object-store-memory={MEMORY}", "--dashboard-agent-listen-port=0"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.nodes.append(made)

    def _alive(self) -> int:
        """Nodes that have joined, by the job API; 0 while nobody answers."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{self.address}/api/v0/nodes", headers=headers), timeout=30
            ) as answer:
                found = json.load(answer)["data"]["result"]["result"]
        except OSError:
            return 0
        return sum(node["state"] == "ALIVE" for node in found)

    def _wait(self, nodes: int) -> None:
        stop = time.monotonic() + START_S
        while time.monotonic() < stop:
            assert self.nodes[-1].poll() is None, self.logs[-1].read_text()[-3000:]
            if self._alive() >= nodes:
                return
            time.sleep(0.3)
        raise AssertionError(f"no {nodes} nodes in {START_S:.0f} s")


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A fresh cluster for the length of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
