"""Which point is tried next: Optuna behind Tune's own adapter, with a start that is fixed and scores that may be early.

    search = MixtureSearch(space, "gp", start=points, seed=0)
    point = search.suggest("trial-1")                              # what Tune does
    search.on_trial_complete("trial-1", {"score": 0.7, "final": True})

``random`` draws uniformly, ``tpe`` is Optuna's tree of Parzen estimators over all dimensions together, ``gp`` a
Gaussian process with the logarithm of expected improvement (what BoTorch is to Ax). Scores of a trial that was stopped
at a rung do not count as scores of the whole trial.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from ray.tune.search.optuna import OptunaSearch

from adamllm_ray.tuning.space import Point, Space

SCORE, FINAL = "score", "final"  # of what a trial reports


class Gate(Protocol):
    """Says whether another trial may start; `budget.Meter`."""

    def room(self, running: int) -> bool:
        """Whether one more fits beside those that run."""


class MixtureSearch(OptunaSearch):
    """A searcher for Tune.

    Args:
        space: what is searched.
        searcher: random, tpe or gp.
        start: points to try first.
        known: (point, score) of trials of earlier searches.
        startup: scored trials before the model of the searcher is used.
        gate: is asked before each suggestion.
    """

    def __init__(
        self,
        space: Space,
        searcher: str,
        *,
        start: Sequence[Point] = (),
        known: Sequence[tuple[Point, float]] = (),
        startup: int = 6,
        seed: int = 0,
        gate: Gate | None = None,
    ) -> None:
        quiet()
        super().__init__(
            space.distributions(),
            metric=SCORE,
            mode="max",
            points_to_evaluate=list(start),
            sampler=_sampler(searcher, startup, seed),
        )
        for point, score in known:
            self.add_evaluated_point(point, score)
        self._gate = gate

    def suggest(self, trial_id: str) -> Any:
        """The next point, or that there is none: the budget has no room for another trial."""
        running = len(self._ot_trials) - len(self._completed_trials)
        if self._gate is not None and not self._gate.room(running):
            return self.FINISHED
        return super().suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A result without FINAL is that of a trial which was stopped on its way: pruned, in Optuna's words."""
        whole = result if result and result.get(FINAL) else None
        super().on_trial_complete(trial_id, whole, error)


def quiet() -> None:
    """Optuna logs each trial and warns of what is experimental in it; Tune's driver says what matters."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _sampler(searcher: str, startup: int, seed: int) -> Any:
    from optuna import samplers

    if searcher == "random":
        return samplers.RandomSampler(seed)
    if searcher == "tpe":
        return samplers.TPESampler(n_startup_trials=startup, multivariate=True, constant_liar=True, seed=seed)
    return samplers.GPSampler(n_startup_trials=startup, deterministic_objective=False, seed=seed)
