"""A Ray cluster of several raylets on this machine, whose nodes can die and be started again.

    with raylets(3) as nodes:
        slay([nodes.raylet_above(pid)])
        nodes.replace_dead()

Ray's own `Cluster`, in a session folder with a short path. Nobody is connected to it: a driver process joins by
``nodes.address``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.processes import family_of, parent_of, slay
from tests.synthesis.lives import short_folder

T = TypeVar("T")
STARTS = 4
RAYLET, GCS = "raylet", "gcs_server"  # Ray's names of the processes of a node


@dataclass(frozen=True)
class Raylets:
    """A running head and its worker nodes."""

    cluster: Any
    folder: Path
    node: dict[str, int]  # what a worker node has

    @property
    def address(self) -> str:
        """What RAY_ADDRESS must be."""
        return str(self.cluster.address)

    @property
    def gcs(self) -> int:
        """Process id of the head's store of all that the cluster knows."""
        return int(_process(self.cluster.head_node, GCS).pid)

    def add(self) -> None:
        """Start one more worker node, without waiting until the others know it."""
        _started(lambda: self.cluster.add_node(wait=False, **self.node))

    def raylet_above(self, pid: int) -> int:
        """The raylet below which a process runs.

        Raises:
            LookupError: below none of this cluster: it is gone, and its number may be somebody else's by now.
        """
        ours = {_process(node, RAYLET).pid for node in self.cluster.worker_nodes}
        above = pid
        with suppress(OSError):
            while above > 1:
                above = parent_of(above)
                if above in ours:
                    return above
        raise LookupError(f"process {pid} is no worker of this cluster")

    def dead(self) -> list[Any]:
        """Worker nodes whose raylet is dead. Reaps it: of a zombie its workers might not notice that it is gone."""
        return [node for node in self.cluster.worker_nodes if _process(node, RAYLET).poll() is not None]

    def replace_dead(self) -> None:
        """Start a node for each dead one, after the rest of that is gone."""
        for node in self.dead():
            self.cluster.remove_node(node, allow_graceful=False)
            self.add()


def _started(start: Callable[[], T]) -> T:
    """Ray gives a raylet 30 s to come up, and a busy machine may need more: what is half there goes, then once more."""
    for left in reversed(range(STARTS)):
        before = set(_children())
        try:
            return start()
        except Exception:  # Ray raises no narrower one
            for pid in set(_children()) - before:
                slay(family_of(pid))
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _children() -> list[int]:
    return [child.pid for child in psutil.Process().children()]


def _process(node: Any, kind: str) -> Any:
    return node.all_processes[kind][0].process


@contextmanager
def raylets(number: int, cpus: int = 2, store_bytes: int = 100 << 20) -> Iterator[Raylets]:
    """A head without CPUs, where drivers are, and that many worker nodes."""
    from ray.cluster_utils import Cluster

    from adamllm_ray.ray_runtime import prepare_environment

    prepare_environment()
    with short_folder() as folder, environment(RAY_TMPDIR=str(folder)):
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": store_bytes}
        cluster = _started(lambda: Cluster(initialize_head=True, head_node_args=head))
        made = Raylets(cluster, folder, {"num_cpus": cpus, "object_store_memory": store_bytes})
        try:
            for _ in range(number):
                _started(lambda: cluster.add_node(**made.node))
            yield made
        finally:
            cluster.shutdown()


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for the length of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
