"""Driver processes to be killed, for tests/synthesis/test_kill.py, benchmarks/recovery.py and soak.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adamllm_ray.data.run import RunFolder
from adamllm_ray.synthesis.watch import committed_rows
from tests.synthesis.driver import STOP
from tests.synthesis.fakes import asked_at

PATIENCE_S = 400.0


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder with a short path: Ray's sockets live below it."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Runs:
    """One run folder and the lives of its drivers."""

    output: Path | str
    vlm: Path
    judge: Path
    ray_folder: Path
    synthesis: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)  # of the drivers' environment, such as RAY_ADDRESS
    lives: int = 0

    def start(self, *, stop: tuple[str, int] | None = None, **maker: Any) -> Life:
        """Start a driver; ``stop``: (point, committed blocks), see driver.py. ``maker`` sets the fake engine."""
        self.lives += 1
        base = self.ray_folder / f"life{self.lives}"
        return Life(self, base, stop, maker)

    @property
    def run(self) -> RunFolder:
        return RunFolder(str(self.output))

    def committed(self) -> int:
        """Rows of committed blocks."""
        return committed_rows(self.run.stage("synthesize"))


class Life:
    """One start of the driver on the run folder."""

    def __init__(self, runs: Runs, base: Path, stop: tuple[str, int] | None, maker: dict[str, Any]) -> None:
        self.log, self.marker = f"{base}.log", Path(f"{base}.marker")
        settings = {"output": str(runs.output), "vlm": str(runs.vlm), "judge": str(runs.judge)}
        spec = Path(f"{base}.json")
        spec.write_text(
            json.dumps(settings | {"maker": {"log": self.log, **maker}, "synthesis": runs.synthesis}), "utf-8"
        )
        environment = {
            "RAY_TMPDIR": str(runs.ray_folder),
            "ADAMLLM_OBJECT_STORE_BYTES": str(200 << 20),
        } | runs.variables
        if stop is not None:
            environment[STOP] = f"{stop[0]} {stop[1]} {self.marker}"
        self.errors = Path(f"{base}.err")
        self.started = time.time()
        with self.errors.open("w") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.synthesis.driver", str(spec)],
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                env=os.environ | environment,
            )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Poll while the driver works; fail when it ends before it is ready."""
        stop = time.monotonic() + PATIENCE_S
        while not ready():
            assert self.process.poll() is None, self.errors.read_text()[-3000:]
            assert time.monotonic() < stop, "the driver does not get on"
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9. Ray's processes are left to notice."""
        self.process.kill()
        self.process.communicate()

    def end(self, patience_s: float = PATIENCE_S) -> tuple[int, str]:
        """(exit code, last line of output) of a driver that ends by itself."""
        out, _ = self.process.communicate(timeout=patience_s)
        return self.process.returncode, out.strip().rpartition("\n")[2]

    def asked(self) -> list[str]:
        """Ids that the engine was asked for in this life."""
        return [name for name, _ in asked_at(self.log)]

    def first_row_after(self) -> float:
        """Seconds from the start to the first row at an engine; infinite if there was none."""
        times = [at for _, at in asked_at(self.log)]
        return min(times) - self.started if times else float("inf")
