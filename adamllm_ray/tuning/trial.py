"""One trial: a mixture trains a model, which answers the validation questions. Runs inside a Tune trial.

    tune/trials/<key>/            key: digest of the parameters, so a trial that was suggested twice is done once
    ├── lives.json                how often it was begun
    ├── seed-0/train, evaluate    stages like those of a run; they continue after any death
    ├── seed-0/rung-256           scores on the way
    ├── result.json               the score: written last. Whoever finds it does nothing again
    └── failed.json               an error that no repetition mends

The process here only drives: Ray Train starts its own workers, Ray Data its own replicas, both outside of the trial's
placement group, which holds next to nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data import storage
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.errors import AdamLLMError, MixtureDriftError, RunLocked, TrainingError
from adamllm_ray.training.recipes import CAPTIONS, TRAIN
from adamllm_ray.tuning import inputs
from adamllm_ray.tuning.settings import section_of, trial_config
from adamllm_ray.tuning.space import Parameters, Space

RESULT, FAILED, LIVES = "result.json", "failed.json", "lives.json"
TRIALS = "trials"
WAIT_S = 5.0
CPUS = 0.01  # of the process that drives a trial
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Trial:
    """A trial of a search. ``full``: without `proxy` and `examples`."""

    config: RunConfig
    run: RunFolder
    parameters: Parameters
    full: bool = False

    @property
    def tune(self) -> StageFolder:
        """The stage of the search."""
        return self.run.stage("tune")

    @property
    def place(self) -> storage.Location:
        """The trial's folder."""
        return self.tune.place.child(f"{'full' if self.full else TRIALS}/{self.parameters.key}")

    def read(self, name: str) -> dict[str, Any] | None:
        """One of its JSON files, None when it is not there."""
        text = storage.read_small(self.place.child(name))
        return None if text is None else json.loads(text)

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write one of its JSON files, whole or not at all."""
        storage.make_folder(self.place)
        storage.write_small(self.place.child(name), json.dumps(value).encode())

    def settings(self, seed: int) -> RunConfig:
        """Its configuration for one seed."""
        output = f"{self.place.uri}/seed-{seed}"
        return trial_config(self.config, self.parameters, output=output, full=self.full, seed=seed)


def run_in_tune(point: dict[str, Any], job: dict[str, Any]) -> None:
    """The function that Tune runs: ``point`` is the searcher's, ``job`` plain data of the search."""
    from ray import tune

    config = parse_config(json.loads(job["config"]))
    parameters = Space.of(section_of(config)).parameters(point)
    run_trial(Trial(config, RunFolder.of(config.run), parameters, job["full"]), tune.report)


def run_trial(trial: Trial, report: Report) -> dict[str, Any]:
    """Do what of the trial is not done yet. Reports {score, examples, final} at each rung and at the end.

    Raises:
        AdamLLMError: the trial cannot be finished, now or (where it left FAILED) ever.
    """
    section = trial.config.run
    own = RunFolder(trial.place.uri, section.s3, lease_s=section.s3_lease_s, s3_lock=section.s3_lock)
    while True:
        try:
            with own.lock():
                return _run_alone(trial, report)
        except RunLocked:  # the same parameters were suggested twice, or who had them died a moment ago
            time.sleep(WAIT_S)


def _run_alone(trial: Trial, report: Report) -> dict[str, Any]:
    done, failed = trial.read(RESULT), trial.read(FAILED)
    if done is not None:
        report(_told(done, final=True))
        return done
    if failed is not None:
        raise TrainingError(failed["error"])
    lives = 1 + (trial.read(LIVES) or {"lives": 0})["lives"]
    trial.write(LIVES, {"lives": lives})
    started = time.monotonic()
    try:
        seeds = [_score(trial, seed, report) for seed in range(section_of(trial.config).repeats)]
    except (AdamLLMError, ValueError) as error:
        if _lasting(error):
            trial.write(FAILED, {"error": str(error)})
        raise
    result = _joined(seeds) | trial.parameters.to_dict() | {"lives": lives, "seconds": time.monotonic() - started}
    trial.write(RESULT, result)
    for seed in range(len(seeds)):
        _tidy(trial, seed)
    report(_told(result, final=True))
    return result


def _score(trial: Trial, seed: int, report: Report) -> dict[str, Any]:
    """Train and evaluate one seed. Returns score, interval, examples, the steps it was continued from."""
    from adamllm_ray.evaluation.runner import evaluate
    from adamllm_ray.training.trainer import Rungs, train

    config, section = trial.settings(seed), section_of(trial.config)
    own, asking = RunFolder.of(config.run), _same_questions(config, trial.config.run.seed)
    known, batch = inputs.answers(config, trial.tune), config.training.global_batch

    def reached(step: int, model: str) -> None:
        there = asking.model_copy(update={"models": asking.models.model_copy(update={"adapted": model})})
        found = evaluate(there, RunFolder(f"{own.uri}/rung-{step * batch}", config.run.s3), known=known)
        report(_told(score_of(found, section.metric, section.mode) | {"examples": step * batch}, final=False))

    steps = [] if trial.full else [-(-rung // batch) for rung in section.rungs]
    trained = train(config, own, stock=inputs.stock(config, trial.tune), rungs=Rungs(steps, reached))
    found = score_of(evaluate(asking, own, known=known), section.metric, section.mode)
    return found | {"examples": trained.extra["examples"], "resumed": trained.extra["resumed"]}


def _same_questions(config: RunConfig, seed: int) -> RunConfig:
    """Repetitions differ in their training only: answers of the base model are known for the search's own seed."""
    return config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})


def score_of(evaluated: Manifest, metric: str, mode: str) -> dict[str, Any]:
    """{score, lo, hi, base} of an evaluation."""
    scores = evaluated.extra["scores"]
    scores = scores if mode == "strict" else scores["paper"]
    cells = {}
    for model in ("base", "adapted"):
        found = scores["models"][model]
        cells[model] = found[metric] if metric in ("average", "overall") else found["types"][metric]
    cell = cells["adapted"]
    return {"score": cell["accuracy"], "lo": cell["lo"], "hi": cell["hi"], "base": cells["base"]["accuracy"]}


def _joined(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds; ``seeds`` keeps their scores."""
    means = {name: fmean(seed[name] for seed in seeds) for name in ("score", "lo", "hi", "base", "examples")}
    return means | {"seeds": [seed["score"] for seed in seeds], "resumed": [seed["resumed"] for seed in seeds]}


def _told(found: dict[str, Any], *, final: bool) -> dict[str, Any]:
    return {"score": found["score"], "examples": found["examples"], "final": final}


def _lasting(error: Exception) -> bool:
    """No repetition helps: the configuration, the model or the mixture is at fault."""
    return isinstance(error, MixtureDriftError) or getattr(error, "exit_code", 1) == 2


def _tidy(trial: Trial, seed: int) -> None:
    """Weights of a finished trial go: its score is what is kept, and the full run trains again."""
    for stage in (CAPTIONS, TRAIN):
        for name in ("ray", "rungs", "model", "adapter"):
            storage.remove_folder(trial.place.child(f"seed-{seed}/{stage}/{name}"))
