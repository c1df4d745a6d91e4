"""Processes of this machine, as /proc tells of them: who started whom, what each was started with; and their ends."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path


def parent_of(pid: int) -> int:
    """Process id of whoever started it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def words_of(pid: int) -> list[str]:
    """Its command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")


def family_of(pid: int) -> list[int]:
    """The process and all that it and its children started, elders first."""
    children: dict[int, list[int]] = defaultdict(list)
    for one in everybody():
        with suppress(OSError):
            children[parent_of(one)].append(one)
    found = [pid]
    for one in found:  # grows while we go
        found += children[one]
    return found


def everybody() -> Iterator[int]:
    """All processes there are at this moment."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def slay(pids: Sequence[int]) -> None:
    """kill -9 of each of at least one process. All of them stand still first, so none hears of another's end."""
    assert pids
    for blow in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, blow)


def raylet_of(pid: int) -> int:
    """Process id of the raylet that started a worker process."""
    raylet = parent_of(pid)
    assert "raylet" in words_of(raylet)[0]
    return raylet
