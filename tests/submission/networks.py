"""A network of its own for each node of a test cluster: network namespaces, plugged into a bridge.

    with network() as net:                         None where this machine does not allow it: `refusal` says why
        net.plug("head")                           -> its address
        Popen([*net.inside("head"), "ray", "start", ...])

Needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN) and iproute2. This machine itself has an address on the bridge and is
reached there by all nodes; nodes reach nothing beyond it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SUBNET = "198.18.{}"  # of the range that is set aside for tests of networks (RFC 2544)
MOST = 8  # nodes


def refusal() -> str:
    """Why this machine gives no network namespaces; empty when it does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (iproute2)"
    bridge = f"ad{os.getpid()}p"
    for words in ("netns add {0}", "netns del {0}", "link add {0} type bridge", "link del {0}"):
        done = subprocess.run(["ip", *words.format(bridge).split()], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no network namespaces here: `ip {words.format('NAME')}` says {done.stderr.strip()}"
    return ""


@contextmanager
def network() -> Iterator[Network | None]:
    """A bridge for the length of the block, or None where that is not allowed."""
    if refusal():
        yield None
        return
    made = Network(os.getpid())
    try:
        made.start()
        yield made
    finally:
        made.stop()


@dataclass
class Network:
    """The bridge and what is plugged in. Names have the process id in them: two of these do not meet."""

    number: int
    nodes: list[str] = field(default_factory=list)

    @property
    def bridge(self) -> str:
        return f"ad{self.number}"

    def address(self, host: int) -> str:
        """1 is this machine, the others are nodes in the order in which they were plugged in."""
        return f"{SUBNET.format(self.number % 256)}.{host}"

    @property
    def addresses(self) -> list[str]:
        """All there can be: urllib's no_proxy knows no ranges."""
        return [self.address(host) for host in range(1, 2 + MOST)]

    def start(self) -> None:
        """Make the bridge."""
        _ip(f"link add {self.bridge} type bridge")
        _ip(f"addr add {self.address(1)}/24 dev {self.bridge}")
        _ip(f"link set {self.bridge} up")

    def stop(self) -> None:
        """Take everything away, whatever is left of it."""
        words = [f"link del {self._cable(node)}" for node in self.nodes]
        words += [f"netns del {self._space(node)}" for node in self.nodes]
        for each in [*words, f"link del {self.bridge}"]:
            subprocess.run(["ip", *each.split()], capture_output=True, check=False)

    def plug(self, node: str) -> str:
        """Make a namespace with a cable to the bridge; returns its address."""
        self.nodes.append(node)
        space, cable = self._space(node), self._cable(node)
        address = self.address(1 + len(self.nodes))
        _ip(f"netns add {space}")
        _ip(f"link add {cable} type veth peer name eth0 netns {space}")
        _ip(f"link set {cable} master {self.bridge} up")
        _ip(f"-n {space} link set lo up")
        _ip(f"-n {space} addr add {address}/24 dev eth0")
        _ip(f"-n {space} link set eth0 up")
        return address

    def inside(self, node: str) -> list[str]:
        """What to put before a command for it to run in the namespace, as the process that was started."""
        return ["ip", "netns", "exec", self._space(node)]

    def _space(self, node: str) -> str:
        return f"{self.bridge}-{node}"

    def _cable(self, node: str) -> str:
        return f"{self.bridge}v{self.nodes.index(node)}"


def _ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {words}: {done.stderr}"
