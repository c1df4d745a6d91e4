"""The searchers of `adamllm tune` on surfaces whose top is known: how near do 40 trials come? Prints one JSON line.

    python -m benchmarks.tune_surface [--seeds 20] [--trials 40]

The very searcher that Tune gets is asked and told in a loop; a trial is a cheap function instead of a training. Three
surfaces: one hill inside a triangle of three sources, one at the edge of four sources with bounds, one over three
sources and a learning rate. Scores carry noise as large as that of some 700 questions would (0.01); what counts is the
true height of the point that the searcher saw best, as a share of the surface's range below the top ("regret"): within
2 % is found. Random search has the same first points and the same number of trials.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamllm_ray.config import TuningSection
from adamllm_ray.tuning.search import MixtureSearch
from adamllm_ray.tuning.space import Parameters, Space
from benchmarks.measure import finish, median, say

NOISE = 0.01
NEAR = 0.02
RATE = "training.learning_rate"


@dataclass(frozen=True)
class Hill:
    """A surface: 0.3 far away, 0.7 at ``top``."""

    section: dict[str, Any]
    top: dict[str, float]
    width: float
    rate: float | None = None

    def height(self, one: Parameters) -> float:
        """True score of a point."""
        far = sum((one.weights[name] - share) ** 2 for name, share in self.top.items()) / self.width**2
        if self.rate is not None:
            far += math.log(one.fields[RATE] / self.rate) ** 2
        return 0.3 + 0.4 * math.exp(-far / 2)


SURFACES = {
    "three sources": Hill(
        {"sources": {"caption": {}, "task": {}, "replay:x": {"high": 0.9}}},
        {"caption": 0.22, "task": 0.61, "replay:x": 0.17},
        0.15,
    ),
    "four sources, at an edge": Hill(
        {"sources": {"both": {}, "caption": {}, "task": {"low": 0.1}, "replay:x": {"high": 0.4}}},
        {"both": 0.45, "caption": 0.0, "task": 0.35, "replay:x": 0.2},
        0.2,
    ),
    "three sources and a rate": Hill(
        {
            "sources": {"caption": {}, "task": {}, "replay:x": {"high": 0.9}},
            "fields": {RATE: {"low": 1e-5, "high": 1e-3, "log": True}},
        },
        {"caption": 0.3, "task": 0.5, "replay:x": 0.2},
        0.2,
        2e-4,
    ),
}


def regret(surface: Hill, kind: str, seed: int, trials: int) -> float:
    """How far below the top the best point is, as a share of the range."""
    section = TuningSection.model_validate(surface.section)
    space, noise = Space.of(section), np.random.default_rng(seed)
    start = space.start(section, {RATE: 2e-5}, seed)
    search = MixtureSearch(space, kind, start=start, startup=len(start), seed=seed)
    seen: list[tuple[float, float]] = []
    for number in range(trials):
        parameters = space.parameters(search.suggest(str(number)))
        true = surface.height(parameters)
        seen.append((true + NOISE * noise.normal(), true))
        search.on_trial_complete(str(number), {"score": seen[-1][0], "final": True})
    return (0.7 - max(seen)[1]) / 0.4


def main() -> None:
    """Run every searcher on every surface and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    options = parser.parse_args()
    found: dict[str, Any] = {"seeds": options.seeds, "trials": options.trials, "within": NEAR, "noise": NOISE}
    for name, surface in SURFACES.items():
        found[name] = {
            kind: _figures(
                lambda seed, s=surface, k=kind: regret(s, k, seed, options.trials), options.seeds, name, kind
            )
            for kind in ("random", "tpe", "gp")
        }
    finish("tune_surface", found)


def _figures(one: Callable[[int], float], seeds: int, surface: str, kind: str) -> dict[str, Any]:
    started = time.monotonic()
    regrets = [one(seed) for seed in range(seeds)]
    found = {
        "found": sum(value <= NEAR for value in regrets),
        "median_regret": round(median(regrets), 4),
        "worst_regret": round(max(regrets), 4),
    }
    say(f"{surface}, {kind}: {found} in {time.monotonic() - started:.0f} s")
    return found


if __name__ == "__main__":
    main()
