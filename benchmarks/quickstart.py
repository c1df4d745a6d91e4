"""The quickstart as a measurement: time of each stage, rows, scores. Prints one JSON line.

    python -m benchmarks.quickstart [--output runs/benchmark] >> benchmarks/results/quickstart.jsonl

The README's result table comes from the last line of that file. A fresh output folder runs everything; a finished one
is only read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from adamllm_ray.config import load_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.stages import run_stages
from benchmarks.measure import ROOT, git, hardware


def main() -> None:
    """Run (or read, then without ``wall_seconds``) the quickstart and print its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "jobs" / "configs" / "quickstart.yaml"))
    parser.add_argument("--output", default="runs/benchmark")
    options = parser.parse_args()
    config = load_config(options.config, [f"run.output={options.output}"])
    started = time.monotonic()
    manifests: dict[str, Any] = {}
    run = RunFolder(config.run.output)
    only_read = run.stage("evaluate").manifest() is not None
    for stage, manifest, seconds in run_stages(config, run):
        manifests[stage.name] = manifest
        print(f"{stage.name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps(_line(manifests, None if only_read else time.monotonic() - started)))


def _line(manifests: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    scores = manifests["evaluate"].extra["scores"]
    return {
        "benchmark": "quickstart",
        "date": time.strftime("%Y-%m-%d"),
        "commit": git("rev-parse", "--short", "HEAD"),
        "hardware": hardware(),
        "versions": manifests["evaluate"].versions,
        "wall_seconds": None if seconds is None else round(seconds),
        "stage_seconds": {name: round(manifest.seconds) for name, manifest in manifests.items()},
        "rows": {
            name: {"in": m.rows_in, "kept": m.kept, "rejected": m.rejected, "failed": m.failed}
            for name, m in manifests.items()
        },
        "verdicts": manifests["synthesize"].verdicts,
        # all that the table shows: per question type, all questions, mean over types, and what was forgotten
        **{part: scores[part] for part in ("models", "difference", "baselines", "general")},
    }


if __name__ == "__main__":
    main()
