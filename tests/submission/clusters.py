"""A Ray cluster as somebody would start it by hand: `ray start` for a head and worker nodes, token authentication on.

A node can be lost at one blow, by SIGKILL to all its processes, and nothing else on the machine is touched (`ray stop`
would end every Ray there is). With a `Network` each node has an address of its own.
"""

from __future__ import annotations

import json
import os
import secrets
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

from tests.processes import family_of, slay
from tests.submission.networks import Network

ROOT = Path(__file__).parents[2]
START_S = 240.0  # of one node, on a busy machine
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
    network: Network | None = None  # without one all are on this machine's loopback
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    agents: list[int] = field(default_factory=list)  # of each node, the port of its agent, which takes jobs as well

    def start(self) -> None:
        """Start all nodes and wait for the job API."""
        self.port, self.dashboard, self.client = free_port(), free_port(), free_port()
        self.token_file.write_text(self.token)
        head = ["--head", "--num-cpus=0", f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
        head += [f"--ray-client-server-port={self.client}", "--include-dashboard=true", f"--temp-dir={self.folder}"]
        if self.network:
            head.append(f"--dashboard-host={self.network.address(2)}")
        self._node(head)
        self._wait(1)
        for number in range(self.workers):  # one after the other: two at once take each other's sockets
            self.add()
            self._wait(2 + number)

    def add(self) -> None:
        """Start one more worker node, without waiting for it."""
        self._node([f"--address={self.host}:{self.port}", f"--num-cpus={self.cpus}"])

    def replace(self) -> None:
        """Start a worker node in the place of a lost one, and wait until all of it is there.

        Nodes on one machine share Ray's session folder. A job that is submitted while a node starts has its working
        folder taken away (`import torch` then says that it cannot load itself): on machines of their own it is not so.
        """
        self.add()
        self._wait(1 + self.workers)
        self.wait_for_agent(len(self.nodes) - 1)

    @property
    def host(self) -> str:
        """Address of the head."""
        return self.network.address(2) if self.network else "127.0.0.1"

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def address(self) -> str:
        """Of the job API."""
        return f"http://{self.host}:{self.dashboard}"

    @property
    def credentials(self) -> dict[str, str]:
        """Environment of whoever may use it."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}

    def get(self, path: str, method: str = "GET", *, agent: int | None = None, **headers: str) -> int:
        """Status of a request to the dashboard, or to the agent of a node that is on the head's address."""
        address = self.address if agent is None else f"http://{self.host}:{self.agents[agent]}"
        request = urllib.request.Request(f"{address}{path}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def wait_for_agent(self, node: int) -> None:
        """A node counts as alive before its agent listens."""
        host = self.network.address(2 + node) if self.network else self.host
        stop = time.monotonic() + START_S
        while time.monotonic() < stop:
            with socket.socket() as probe:
                if probe.connect_ex((host, self.agents[node])) == 0:
                    return
            time.sleep(0.3)
        raise AssertionError(f"no agent at {host}:{self.agents[node]} in {START_S:.0f} s")

    def lose(self, node: int) -> None:
        """SIGKILL to everything of a node at one blow: `ray start`, its raylet and all workers."""
        slay(family_of(self.nodes[node].pid))
        self.nodes[node].wait()

    def stop(self) -> None:
        """The same for all that are left."""
        for number, node in enumerate(self.nodes):
            if node.poll() is None:
                self.lose(number)

    def _node(self, arguments: list[str]) -> None:
        name = f"node{len(self.nodes)}"
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *arguments]
        if self.network:
            command.append(f"--node-ip-address={self.network.plug(name)}")
            command = [*self.network.inside(name), *command]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # `python` of an entry point is this one
        environment = os.environ | self.credentials | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        # ten seconds: longer than Ray by itself goes on asking the replicas of a lost node
        environment |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "10"}
        self.logs.append(self.folder / f"{name}.log")
        self.agents.append(free_port())
        with self.logs[-1].open("wb") as log:
            made = subprocess.Popen(
                [*command, f"--object-store-memory={MEMORY}", f"--dashboard-agent-listen-port={self.agents[-1]}"],
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
def running(folder: Path, network: Network | None = None) -> Iterator[Cluster]:
    """A fresh cluster for the length of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder, network=network)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
