"""The search over mixtures and other fields of a run whose records are synthesized.

    adamllm tune CONFIG

Reads ``synthesize/data``; writes ``tune/``: ``inputs/`` (what all trials share), ``trials/`` (one folder each, see
`trial`), ``ray/`` (Tune's own books), ``spent.json``, ``data/best.yaml`` (the full run at the best mixture) and a
manifest whose ``extra`` holds every trial and the fitted surface. Rows in are trials.

The same command continues after a death of the driver: `Tuner.restore` brings the searcher and its trials back, and a
trial whose score is in its folder is not done again, whatever Tune's books know of it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adamllm_ray.config import RunConfig
from adamllm_ray.data import storage
from adamllm_ray.data.manifest import Manifest, code_version
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, TrainingError
from adamllm_ray.ray_runtime import prepare_environment, ray_session
from adamllm_ray.tuning import budget, inputs
from adamllm_ray.tuning.capacity import most_trials, need
from adamllm_ray.tuning.checks import check, extremes
from adamllm_ray.tuning.settings import configured, ready_config, section_of, trial_config
from adamllm_ray.tuning.space import Parameters, Point, Space
from adamllm_ray.tuning.surface import agreement, surface
from adamllm_ray.tuning.trial import CPUS, RESULT, Trial, run_in_tune

if TYPE_CHECKING:
    from ray.tune import ResultGrid

STAGE = "tune"
BEST = "data/best.yaml"
RAY_TUNE = "ray"  # folder of Tune's books inside the stage
_FREE = {"concurrent", "retries"}
_CODE = ("simplex", "space", "search", "schedule", "settings", "trial", "inputs", "surface")
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a configuration mean the driver's folder
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a search like any other stage
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def tune(config: RunConfig, run: RunFolder, *, force_new: bool = False) -> Manifest:
    """Search, and say what was found.

    ``extra`` of the manifest: ``trials`` (parameters, score, interval, examples, seconds of each), ``best`` (what
    ``best.yaml`` sets, and why: surface, trial or full trial), ``surface`` (see there), ``proxy`` (rank correlation),
    ``spent`` {hours, unit}, ``base`` (score of the untrained model), ``metric`` and ``searcher``.

    Raises:
        ConfigError: a search that cannot work, or synthesis is not finished.
        TrainingError: no trial came to its end.
    """
    started = time.monotonic()
    section, stage = section_of(config), run.stage(STAGE)
    synthesized = run.stage("synthesize").manifest()
    if synthesized is None:
        raise ConfigError(f"{run.uri} has no finished synthesis to search on; run `adamllm synthesize` first")
    if force_new or stage.manifest() is None:
        check(config, run)
    if stage.begin(fingerprint(config, run, synthesized), force_new=force_new) == "finished":
        finished = stage.manifest()
        if finished is not None:
            return finished
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    prepare_environment()
    with ray_session():
        for settings in _one_per_base(config):
            inputs.prepare(settings, run, stage, section.repeats)
        space = Space.of(section)
        start = space.start(section, configured(config, section.fields), config.run.seed)
        trials = list(_search(config, run, space, start, _known(config, space)))
        full = _full_trials(config, run, space, trials)
    extra = summary(config, space, trials, full) | {"spent": _spent(config, stage)}
    storage.make_folder(stage.place.child("data"))
    storage.write_small(stage.place.child(BEST), ready_config(config, _chosen(extra)).encode())
    verdicts = Counter(trial["verdict"] for trial in extra["trials"] + extra["full"])
    seconds = time.monotonic() - started
    return stage.finish(rows_in=len(trials) + len(full), verdicts=verdicts, extra=extra, seconds=seconds)


def fingerprint(config: RunConfig, run: RunFolder, synthesized: Manifest) -> dict[str, Any]:
    """What a score depends on, and what is searched."""
    from adamllm_ray.evaluation import runner
    from adamllm_ray.models.checkpoint import resolve_model
    from adamllm_ray.training import trainer
    from adamllm_ray.training.books import completed, forbidden_sets

    settings = completed(trial_config(config, next(iter(extremes(config)))))
    base, general = resolve_model(settings.models.base), trainer.general_tasks(settings, run)
    return {
        "trained": trainer.fingerprint(settings, synthesized, base, forbidden_sets(settings), general),
        "evaluated": runner.fingerprint(settings, runner.base_contestants(settings)),
        "tuning": section_of(config).model_dump(mode="json", exclude=_FREE),
        "code": code_version(*(f"adamllm_ray.tuning.{name}" for name in _CODE)),
    }


def summary(
    config: RunConfig, space: Space, trials: Sequence[dict[str, Any]], full: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the trials say together. Raises TrainingError when none came to its end."""
    done = [trial for trial in trials if trial["verdict"] == Verdict.OK]
    if not done:
        words = next((trial["error"] for trial in trials if trial["error"]), "all were stopped on their way")
        raise TrainingError(f"tune: none of {len(trials)} trials came to its end: {words}")
    section = section_of(config)
    scored = [(Parameters(trial["weights"], trial["fields"]), trial["score"]) for trial in done]
    found = surface(space, scored, config.run.seed)
    return {
        "metric": section.metric,
        "mode": section.mode,
        "searcher": section.searcher,
        "columns": space.columns,
        "sources": list(section.sources),
        "base": done[0]["base"],
        "trials": list(trials),
        "full": list(full),
        "surface": found,
        "proxy": _proxy(done, full),
        "best": _best(done, full, found),
    }


def _search(
    config: RunConfig,
    run: RunFolder,
    space: Space,
    start: Sequence[Point],
    known: Sequence[tuple[Point, float]],
    *,
    full: bool = False,
) -> Iterator[dict[str, Any]]:
    """Start or continue the search in Tune. Yields each trial as plain data."""
    import ray.tune

    _keep_keys_here()
    stage, section = run.stage(STAGE), section_of(config)
    home = config.run.model_copy(update={"output": run.uri, "upstream": run.upstream})  # the same on every node
    job = {"config": config.model_copy(update={"run": home}).model_dump_json(), "full": full}
    trainable = ray.tune.with_resources(ray.tune.with_parameters(run_in_tune, job=job), {"CPU": CPUS})
    name = f"{RAY_TUNE}-full" if full else RAY_TUNE
    fs = None if stage.place.local else stage.fs
    if ray.tune.Tuner.can_restore(f"{stage.path}/{name}", fs):
        tuner = ray.tune.Tuner.restore(
            f"{stage.path}/{name}", trainable, resume_unfinished=True, resume_errored=True, storage_filesystem=fs
        )
    else:
        settings = trial_config(config, space.parameters(start[0]), full=full)
        samples = len(start) if full else section.trials
        tuner = _tuner(trainable, name, stage, config, settings, space, start, known, samples)
    yield from _outcomes(config, run, space, tuner.fit(), full)


def _tuner(
    trainable: Any,
    name: str,
    stage: StageFolder,
    config: RunConfig,
    settings: RunConfig,
    space: Space,
    start: Sequence[Point],
    known: Sequence[tuple[Point, float]],
    samples: int,
) -> Any:
    import ray.tune

    from adamllm_ray.synthesis.pools import cluster_capacity
    from adamllm_ray.tuning.schedule import scheduler
    from adamllm_ray.tuning.search import MixtureSearch

    section = section_of(config)
    meter = budget.Meter(stage.place, need(settings), section.budget_hours)
    search = MixtureSearch(
        space,
        section.searcher,
        start=start[:samples],
        known=known,
        startup=len(start),
        seed=config.run.seed,
        gate=meter,
    )
    return ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=samples,
            search_alg=search,
            scheduler=scheduler(section, settings.training.global_batch),
            max_concurrent_trials=most_trials(settings, cluster_capacity(), section.concurrent),
            trial_dirname_creator=_dirname,
        ),
        run_config=ray.tune.RunConfig(
            name=name,
            storage_path=stage.path,
            storage_filesystem=None if stage.place.local else stage.fs,
            failure_config=ray.tune.FailureConfig(max_failures=section.retries),
            callbacks=[meter],
            stop=meter,
            verbose=0,
        ),
    )


def _keep_keys_here() -> None:
    """Tune would put the keys to the store into the environment of its trials, which Ray shows to whoever sees the
    cluster. Nodes have keys of their own, and a local Ray inherits ours.
    """
    from ray.tune.execution import class_cache

    keys = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(keys)


def _dirname(trial: Any) -> str:
    return str(trial.trial_id)  # Tune's own name holds every parameter


def _outcomes(
    config: RunConfig, run: RunFolder, space: Space, results: ResultGrid, full: bool
) -> Iterator[dict[str, Any]]:
    for trial in results._experiment_analysis.trials:  # a `Result` has no parameters before the first report
        parameters = space.parameters(trial.config)
        done = Trial(config, run, parameters, full).read(RESULT)
        told = {name: (trial.last_result or {}).get(name) for name in ("score", "examples")}
        found = {"key": parameters.key, **parameters.to_dict(), "error": "", **(done or told)}
        if done is not None:
            yield found | {"verdict": Verdict.OK.value}
        elif trial.status == "ERROR":
            yield found | {"verdict": Verdict.TRIAL_FAILED.value, "error": budget.last_words(trial)}
        else:
            yield found | {"verdict": Verdict.TRIAL_STOPPED.value}


def _one_per_base(config: RunConfig) -> Iterable[RunConfig]:
    """A trial's configuration for each base model that is trained."""
    found: dict[str, RunConfig] = {}
    for parameters in extremes(config):
        settings = trial_config(config, parameters)
        found.setdefault(settings.models.base, settings)
        if section_of(config).full_trials:
            settings = trial_config(config, parameters, full=True)
            found.setdefault(settings.models.base, settings)
    return found.values()


def _known(config: RunConfig, space: Space) -> list[tuple[Point, float]]:
    """Scored points of earlier searches that lie in this space."""
    found = []
    for uri in section_of(config).warm_start:
        manifest = RunFolder(uri, config.run.s3).stage(STAGE).manifest()
        if manifest is None:
            raise ConfigError(f"tuning.warm_start: {uri} holds no finished search")
        for trial in manifest.extra["trials"]:
            point = space.point(Parameters(trial["weights"], trial["fields"]))
            if trial["verdict"] == Verdict.OK and point is not None:
                found.append((point, trial["score"]))
    return found


def _full_trials(
    config: RunConfig, run: RunFolder, space: Space, trials: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Some of the trials again at full length and size: the best one, and others evenly down to the worst."""
    done = sorted((trial for trial in trials if trial["verdict"] == Verdict.OK), key=lambda trial: -trial["score"])
    count = min(section_of(config).full_trials, len(done))
    if not count:
        return []
    places = [round(number * (len(done) - 1) / max(count - 1, 1)) for number in range(count)]
    chosen = [space.point(Parameters(done[place]["weights"], done[place]["fields"])) for place in places]
    return list(_search(config, run, space, [point for point in chosen if point is not None], [], full=True))


def _proxy(done: Sequence[dict[str, Any]], full: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How far a trial's score tells that of the full run: ranks of those that were run both ways."""
    cheap = {trial["key"]: trial["score"] for trial in done}
    pairs = [
        (cheap[trial["key"]], trial["score"])
        for trial in full
        if trial["verdict"] == Verdict.OK and trial["key"] in cheap
    ]
    if not pairs:
        return None
    return {"trials": len(pairs), "rank_correlation": agreement(*zip(*pairs, strict=True)), "pairs": pairs}


def _best(
    done: Sequence[dict[str, Any]], full: Sequence[dict[str, Any]], found: dict[str, Any] | None
) -> dict[str, Any]:
    """What to run: the best full trial, else the surface's maximum if it predicts at all, else the best trial."""
    whole = [trial for trial in full if trial["verdict"] == Verdict.OK]
    if whole:
        return _entry(max(whole, key=lambda trial: trial["score"]), "full trial")
    if found is not None and (found["agreement"] or 0.0) > 0:
        return _entry(found["best"], "surface")
    return _entry(max(done, key=lambda trial: trial["score"]), "trial")


def _entry(found: dict[str, Any], why: str) -> dict[str, Any]:
    return {name: found[name] for name in ("weights", "fields", "score", "lo", "hi")} | {"from": why}


def _chosen(extra: dict[str, Any]) -> Parameters:
    return Parameters(extra["best"]["weights"], extra["best"]["fields"])


def _spent(config: RunConfig, stage: StageFolder) -> dict[str, Any]:
    settings = trial_config(config, next(iter(extremes(config))))
    books = budget.read(stage.place.child(budget.METER))
    return {"hours": books["hours"], "unit": "GPU-hours" if need(settings)["GPU"] else "CPU-hours"}


def best_config(run: RunFolder) -> str:
    """YAML of the full run that a finished search proposes. Raises ConfigError when there is none."""
    found = run.read(f"{STAGE}/{BEST}")
    if found is None or run.stage(STAGE).manifest() is None:
        raise ConfigError(f"{run.uri} holds no finished search; `adamllm tune` makes one")
    return found.decode()


def begun(run: RunFolder) -> bool:
    """Whether there is a search to continue."""
    return run.read(f"{STAGE}/fingerprint.json") is not None
