"""Fuzz what reads foreign bytes, guided by coverage (Atheris). Prints one JSON line.

    python -m benchmarks.fuzz_guided [--seconds 60]        or    make fuzz SECONDS=60

Each target of tests/fuzz/targets.py runs for so long in a process of its own, from its corpus and from what earlier
runs found (.cache/fuzz). Exit code 1 when one of them found something; the input is named then, and
`python -m tests.fuzz TARGET FILE` shows it again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from typing import Any

from benchmarks.measure import ROOT, finish, say
from tests.fuzz.__main__ import NAMES

FIGURES = {"inputs": r"stat::number_of_executed_units:\s*(\d+)", "coverage": r"cov: (\d+)", "corpus": r"corp: (\d+)/"}


def main() -> None:
    """Fuzz all targets, one after the other, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="per target")
    seconds = parser.parse_args().seconds
    metrics = {name: fuzz(name, seconds) for name in NAMES}
    finish("fuzz_guided", {"seconds": seconds, **metrics})
    sys.exit(any(result["findings"] for result in metrics.values()))


def fuzz(name: str, seconds: int) -> dict[str, Any]:
    """What libFuzzer tells at the end of a run: inputs tried, edges covered, inputs that covered new ones, findings."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    if done.returncode:
        say(done.stderr[-4000:])
    figures = {key: int((re.findall(pattern, done.stderr) or [0])[-1]) for key, pattern in FIGURES.items()}
    say(f"{name}: {figures}")
    return {**figures, "findings": int(done.returncode != 0)}


if __name__ == "__main__":
    main()
