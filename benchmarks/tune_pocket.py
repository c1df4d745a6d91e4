"""A search over mixtures on the satellite chips, and its best mixture against the corners. Prints one JSON line.

    python -m benchmarks.tune_pocket [--output runs/benchmark-tune]

jobs/configs/tune.yaml: at least 12 trials on 2 cores, meant to end in 45 minutes. The best mixture, each corner (one
source) and the paper's recipe then train in full and answer the test questions, which the search never saw;
differences are paired by question. The picture of the surface goes to benchmarks/results/tune_pocket.svg.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import yaml

from adamllm_ray.config import RunConfig, load_config, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.evaluation.compare import Arm, compare
from adamllm_ray.ray_runtime import ray_session
from adamllm_ray.report.plots import mixture_surface
from adamllm_ray.stages import stage_named
from adamllm_ray.tuning.runner import best_config
from adamllm_ray.tuning.settings import ready_config, section_of
from adamllm_ray.tuning.space import Parameters, Space
from benchmarks.measure import ROOT, finish, say

COLOURS = {"--ink": "#1f2933", "--line": "#e2e0d8", "--adapted": "#1d7a6c", "--mark": "#c2681c", "--base": "#a9b4c2"}


def main() -> None:
    """Search, train the arms, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/benchmark-tune")
    options = parser.parse_args()
    config = load_config(ROOT / "jobs" / "configs" / "tune.yaml", [f"run.output={options.output}"])
    run = RunFolder(config.run.output)
    with run.lock(), ray_session():
        for name in ("ingest", "synthesize"):
            stage_named(name).run(config, run)
        from adamllm_ray.tuning.runner import tune

        started = time.monotonic()
        manifest = tune(config, run)
        say(f"search: {time.monotonic() - started:.0f} s now, {manifest.seconds:.0f} s when it was made")
        arms = {name: _arm(name, one, run) for name, one in _configs(config, run).items()}
    _picture(manifest.extra)
    finish("tune_pocket", _figures(manifest, arms))


def _configs(config: RunConfig, run: RunFolder) -> dict[str, RunConfig]:
    """The full runs: best, and each corner (of which `both` is the paper's recipe)."""
    simplex = Space.of(section_of(config)).simplex
    found = {"best": best_config(run)}
    if simplex is not None:
        names = [f"only {max(corner, key=lambda source: corner[source])}" for corner in simplex.corners()]
        found |= {
            name: ready_config(config, Parameters(corner, {}))
            for name, corner in zip(names, simplex.corners(), strict=True)
        }
    return {name: parse_config(yaml.safe_load(text)) for name, text in found.items()}


def _arm(name: str, config: RunConfig, run: RunFolder) -> str:
    """Train and evaluate one mixture on the search's records. Returns its run folder."""
    folder = f"{run.uri}-{name.replace(' ', '-')}"
    config = config.model_copy(update={"run": config.run.model_copy(update={"output": folder})})
    own = RunFolder.of(config.run)
    for stage in ("train", "evaluate"):
        done = stage_named(stage).run(config, own)
        say(f"{name}: {stage} {done.seconds:.0f} s")
    return folder


def _figures(manifest: Any, arms: dict[str, str]) -> dict[str, Any]:
    found, against = manifest.extra, {}
    for name, folder in arms.items():
        if name != "best":
            difference = compare(
                Arm((folder,), "adapted"), Arm((arms["best"],), "adapted"), "strict"
            ).overall.difference
            against[name] = {end: round(getattr(difference, end), 4) for end in ("value", "lo", "hi", "p")}
    scores = {
        name: RunFolder(folder).stage("evaluate").manifest().extra["scores"]["models"]["adapted"]["overall"]
        for name, folder in arms.items()
    }
    return {
        "search_seconds": manifest.seconds,
        "trials": {"done": manifest.kept, "stopped": manifest.rejected, "failed": manifest.failed},
        "spent": found["spent"],
        "best": found["best"],
        "interval": (found["surface"] or {}).get("interval"),
        "importance": (found["surface"] or {}).get("importance"),
        "agreement": (found["surface"] or {}).get("agreement"),
        "test": {name: {end: round(cell[end], 4) for end in ("accuracy", "lo", "hi")} for name, cell in scores.items()},
        "best_minus": against,
        "beats_or_ties": all(difference["hi"] >= 0 for difference in against.values()),
        "table": [{**one["weights"], "score": one["score"]} for one in found["trials"] if one["verdict"] == "ok"],
    }


def _picture(found: dict[str, Any]) -> None:
    """The report's drawing with colours of its own."""
    svg = mixture_surface(found)
    if svg:
        colours = "".join(f"{name}:{colour};" for name, colour in COLOURS.items())
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = svg.replace("<svg", f'<svg {spaces} style="{colours}background:#fff"', 1)
        (ROOT / "benchmarks" / "results" / "tune_pocket.svg").write_text(svg)


if __name__ == "__main__":
    main()
