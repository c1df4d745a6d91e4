"""A synthesizer tuned on seed data against the base model it was tuned from, and what blank images do.

    python -m benchmarks.synthesizer_tuning [IMAGES] [PAIRS]     about half an hour on two cores

Seed files of the pocket world -> `adamllm seed` -> tuning under Ray Train -> export -> vLLM -> tasks for satellite
chips -> judge, once with 10 % blank images and once with none, and the untuned base for comparison. Shares of all pairs
with Wilson intervals: a task could be read; the judge kept it; both answers are right against the chip's known
attributes. The same again on chips whose image was replaced by noise while the caption stayed (the paper's appendix F).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from adamllm_ray.config import RunConfig, load_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.evaluation.intervals import wilson_interval
from adamllm_ray.models.checkpoint import resolve_model
from adamllm_ray.pocket.gates import judged_tasks
from adamllm_ray.pocket.seeds import write_seed
from adamllm_ray.training.seed.build import seed
from adamllm_ray.training.trainer import synthesizer
from benchmarks.measure import ROOT, finish, say

CONFIG = ROOT / "jobs" / "configs" / "quickstart_tuned.yaml"  # how it is tuned


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    metrics: dict[str, Any] = {"images": images, "pairs": pairs}
    with tempfile.TemporaryDirectory() as name:
        files = write_seed(Path(name) / "seed", images)
        models = {"base": resolve_model("pocket:base")}
        for arm, share in (("tuned", 0.1), ("tuned_without_blanks", 0.0)):
            models[arm] = tuned(config_of(Path(name) / arm, files, share))
        for arm, folder in models.items():
            for noise in (False, True):
                label = f"{arm}, noise for images" if noise else arm
                metrics[label] = shares(folder, pairs, noise=noise)
                say(f"{label}: {metrics[label]}")
    finish("synthesizer_tuning", metrics)


def config_of(output: Path, files: dict[str, str], blank_share: float) -> RunConfig:
    seed_files = [f"seed.{name}={path}" for name, path in files.items()]
    return load_config(CONFIG, [f"run.output={output}", f"seed.blank_share={blank_share}", *seed_files])


def tuned(config: RunConfig) -> str:
    run = RunFolder.of(config.run)
    seed(config, run)
    model: str = synthesizer(config, run).extra["model"]
    return model


def shares(folder: str, pairs: int, *, noise: bool) -> dict[str, Any]:
    """Share of all pairs, with its interval, that got as far as each of the gates."""
    found = judged_tasks(Path(folder), pairs, noise=noise)
    made = {gate: wilson_interval(sum(passed), pairs) for gate, passed in found.items()}
    return {gate: [round(value, 3) for value in (one.value, one.lo, one.hi)] for gate, one in made.items()}


if __name__ == "__main__":
    main()
