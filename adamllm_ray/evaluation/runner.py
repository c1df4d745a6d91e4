"""Last stage before the report: base and adapted model answer the same questions, greedily.

    adamllm evaluate CONFIG                    or    adamllm run CONFIG

What is asked and answered is kept as it comes (stores.py), so a run that was killed asks only what it did not know
yet. ``data/predictions.parquet`` has one row per (model, question), scored under the strict and the paper's metrics.

Rows in are questions x models. The scores, with intervals and baselines, are in the manifest's ``extra["scores"]``.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from adamllm_ray import progress
from adamllm_ray.config import AskedTask, RunConfig
from adamllm_ray.config.evaluation import POCKET
from adamllm_ray.data.images import decode
from adamllm_ray.data.manifest import Manifest, code_version
from adamllm_ray.data.run import RunFolder, StageFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, ModelError, RowAccountingError, SourceError, TooManyFailures
from adamllm_ray.evaluation.answers import Contestant, answer
from adamllm_ray.evaluation.baselines import MODES, Baseline, colour, majority
from adamllm_ray.evaluation.fallback import engine_maker
from adamllm_ray.evaluation.metrics import Score, score
from adamllm_ray.evaluation.scores import summarise
from adamllm_ray.evaluation.stores import ANSWER_SCHEMA, AnswerStore, QuestionStore, write_table
from adamllm_ray.evaluation.tasks import Question, describe, load_questions, task_digest, task_questions, token_limit
from adamllm_ray.models.card import refresh_card
from adamllm_ray.ray_runtime import ray_session
from adamllm_ray.synthesis.actors import EngineMaker

STAGE, BASE = "evaluate", "base"
MAX_REFUSED_SHARE = 0.05  # of a model's questions that its engine may refuse before the figures mean nothing
NOTHING = (
    "evaluation.task is empty: name a .parquet or .jsonl file with questions, or 'pocket'; or list evaluation.tasks"
)

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # model/question_id: unique
        *ANSWER_SCHEMA,
        # 0..1 under each kind of metric, and whether an answer could be read; null: the question could not be used
        pa.field("score_strict", pa.float32()),
        pa.field("score_paper", pa.float32()),
        pa.field("parsed_strict", pa.bool_()),
        pa.field("parsed_paper", pa.bool_()),
    ]
)


def evaluate(
    config: RunConfig,
    run: RunFolder,
    *,
    force_new: bool = False,
    engine_maker: EngineMaker | None = None,
    known: StageFolder | None = None,
) -> Manifest:
    """Score the base model and the adapted one on the configured tasks. Connects to Ray, or starts a local one.

    Args:
        config: the run's configuration.
        run: its folder, with a finished train stage unless ``models.adapted`` names a model.
        force_new: throw away what is there of this stage.
        engine_maker: makes a replica's engine; what ``evaluation.backend`` says unless a test says otherwise.
        known: what `ask_base` has written for this configuration: its questions and answers are used, not kept again.

    Raises:
        ConfigError: no task is configured.
        ModelError: there is no trained model yet, or one of the two cannot be run.
        SourceError: a task cannot be read, or holds no usable question.
        TooManyFailures: an engine refused more than 5 % of the questions.
    """
    started = time.monotonic()
    if not config.evaluation.asked:
        raise ConfigError(NOTHING)
    contestants = _contestants(config, run)
    stage = run.stage(STAGE)
    if known is not None:
        _same_questions(config, contestants[:1], known)
    finished = stage.begin(fingerprint(config, contestants), force_new=force_new) == "finished"
    manifest = stage.manifest() if finished else None
    if manifest is None:
        questions = QuestionStore(known or stage)
        total = _fill(questions, config)
        stores = {
            one.name: AnswerStore(known if known and one.name == BASE else stage, one.name) for one in contestants
        }
        _ask(questions, stores, contestants, config, total, engine_maker)
        keys = {one.id: one for one in questions.questions()}
        predictions = [row for name, store in stores.items() for row in _scored(store.rows(), name, keys)]
        table = pa.Table.from_pylist(predictions, schema=PREDICTION_SCHEMA)
        write_table(stage.place.child("data/predictions.parquet"), table)
        scores = _scores(predictions, questions, config)
        models = {one.name: one.adapter or one.folder for one in contestants}
        manifest = stage.finish(
            rows_in=total * len(contestants),
            verdicts=Counter(row["verdict"] for row in predictions),
            extra={"scores": scores, "questions": total, "models": models},
            seconds=time.monotonic() - started,
        )
    if config.models.adapted is None:  # what was scored is the run's own model
        refresh_card(config, run)
    return manifest


def ask_base(
    config: RunConfig, stage: StageFolder, *, force_new: bool = False, engine_maker: EngineMaker | None = None
) -> Manifest:
    """Put the questions and the base model's answers into ``stage``, for evaluations that have both in common.

    Raises:
        As `evaluate`.
    """
    started = time.monotonic()
    if not config.evaluation.asked:
        raise ConfigError(NOTHING)
    contestants = base_contestants(config)
    finished = stage.begin(fingerprint(config, contestants), force_new=force_new) == "finished"
    manifest = stage.manifest() if finished else None
    if manifest is None:
        questions = QuestionStore(stage)
        total = _fill(questions, config)
        store = AnswerStore(stage, BASE)
        _ask(questions, {BASE: store}, contestants, config, total, engine_maker)
        verdicts = Counter(row["verdict"] for row in store.rows())
        manifest = stage.finish(rows_in=total, verdicts=verdicts, seconds=time.monotonic() - started)
    return manifest


def _same_questions(config: RunConfig, base: Sequence[Contestant], known: StageFolder) -> None:
    """Raise FingerprintMismatch unless ``known`` holds what this evaluation would ask its base model."""
    if known.begin(fingerprint(config, base)) != "finished":
        raise ConfigError(f"{known.uri} is not finished: its answers cannot be used")


def check(config: RunConfig) -> None:
    """Look at the first row of every task, hours before it is asked. Raises SourceError naming the field."""
    for asked in config.evaluation.asked:
        if not asked.task.shipped:
            next(task_questions(asked, config.data.s3, config.data.images), None)


def fingerprint(config: RunConfig, contestants: Sequence[Contestant]) -> dict[str, Any]:
    """What the scores depend on: questions, weights, decoding, and the code that reads answers."""
    section = config.evaluation
    package = "adamllm_ray.evaluation"
    names = ("metrics", "tasks", "intervals", "baselines", "scores", "answers", "stores", "runner", "fallback")
    return {
        "tasks": {asked.task.name: _task_fingerprint(asked, config) for asked in section.asked},
        "backend": section.backend,
        "max_model_len": section.engine.max_model_len,
        "dtype": section.engine.dtype,
        "bootstrap_samples": section.bootstrap_samples,
        "seed": config.run.seed,
        "images": config.data.images.model_dump(),
        "models": {one.name: _model_fingerprint(one, config) for one in contestants},
        "code": code_version(*(module for name in names for module in _modules(f"{package}.{name}"))),
    }


def _modules(name: str) -> Iterator[str]:
    """A module, and those in it if it is a package."""
    yield name
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        yield from (f"{name}.{one.name}" for one in pkgutil.iter_modules(spec.submodule_search_locations))


def _task_fingerprint(asked: AskedTask, config: RunConfig) -> dict[str, Any]:
    task, section = asked.task, config.evaluation
    if task.shipped:
        modules = (
            ("domain", "chips", "language", "regions") if task.name == POCKET else ("curriculum", "world", "language")
        )
        made = code_version(*(f"adamllm_ray.pocket.{name}" for name in modules))
    else:
        made = task_digest(asked, config.data.s3, config.data.images)
    return {
        "questions": made,
        "path": task.path,
        "split": task.split,
        "metric": task.metric,
        "limit": task.limit or section.limit,
        "max_new_tokens": token_limit(task, section),
        "general": asked.general,
    }


def _model_fingerprint(one: Contestant, config: RunConfig) -> str:
    from adamllm_ray.models.checkpoint import model_fingerprint

    parts = [one.folder] if one.adapter is None else [one.folder, one.adapter]
    return "+".join(model_fingerprint(part, config.run.s3) for part in parts)


def _contestants(config: RunConfig, run: RunFolder) -> list[Contestant]:
    """The base model, and what is compared with it: a model, or the base model with an adapter on top."""
    from adamllm_ray.models.adapter import is_adapter
    from adamllm_ray.models.checkpoint import resolve_model

    [one], adapted = base_contestants(config), config.models.adapted
    base = one.folder
    if adapted is not None:
        if is_adapter(adapted, config.run.s3):
            return [one, Contestant("adapted", base, adapted)]
        return [one, Contestant("adapted", resolve_model(adapted, config.run.s3))]
    trained = run.stage("train")
    if trained.manifest() is None:
        raise ModelError(
            f"there is no trained model in {trained.uri}: run `adamllm train` with this configuration first, or name "
            "one as models.adapted"
        )
    return [one, Contestant("adapted", f"{trained.uri}/model")]


def base_contestants(config: RunConfig) -> list[Contestant]:
    """The base model alone."""
    from adamllm_ray.models.checkpoint import resolve_model

    return [Contestant(BASE, resolve_model(config.models.base))]


def _fill(questions: QuestionStore, config: RunConfig) -> int:
    """Put the questions of all tasks into the store. Returns how many there are, usable or not."""
    section = config.evaluation
    found = load_questions(section, config.data.s3, config.data.images)
    total, usable = questions.fill(found)
    if not usable:
        paths = ", ".join(asked.task.path or asked.task.name for asked in section.asked)
        raise SourceError(f"evaluation.task: {paths} holds no question that can be asked ({total} rows)")
    return total


def _ask(
    questions: QuestionStore,
    stores: Mapping[str, AnswerStore],
    contestants: Sequence[Contestant],
    config: RunConfig,
    total: int,
    maker: EngineMaker | None,
) -> None:
    """Get the answers that are not there yet. What has come is on disk, however this ends.

    A model that was answered for in an earlier attempt is held against the ceiling again: it may be what ended it.
    """
    settled = {name: set(store.settled) for name, store in stores.items()}
    for name, store in stores.items():
        if len(settled[name]) == total:
            _check_refusals(store.rows(), name)
    waiting = [one for one in contestants if len(settled[one.name]) < total]
    if not waiting:
        return
    maker = maker or engine_maker(config.evaluation.backend)
    with ray_session(), progress.task(STAGE, total * len(stores)) as bar:
        bar.update(sum(map(len, settled.values())))
        try:
            for name, table in answer(list(questions.groups()), settled, waiting, config, maker):
                store = stores[name]
                store.add(table)
                bar.update(sum(len(one.settled) for one in stores.values()))
                if len(store.settled) == total:
                    _check_refusals(store.rows(), name)
        finally:
            for store in stores.values():
                store.flush()


def _check_refusals(answers: Sequence[Mapping[str, Any]], name: str) -> None:
    refused = [row for row in answers if row["verdict"] in (Verdict.ENGINE_ERROR, Verdict.PROMPT_TOO_LONG)]
    if len(refused) > MAX_REFUSED_SHARE * len(answers):
        raise TooManyFailures(
            f"the {name} model's engine refused {len(refused)} of {len(answers)} questions, the first with: "
            f"{refused[0]['verdict_detail']}"
        )


def _scored(rows: Sequence[Mapping[str, Any]], name: str, keys: Mapping[str, Question]) -> Iterator[dict[str, Any]]:
    """Prediction rows of one model. Raises RowAccountingError unless every question was answered."""
    if len(rows) != len(keys):
        raise RowAccountingError(f"stage '{STAGE}': {len(keys)} questions, but {len(rows)} answers of the {name} model")
    for row in rows:
        yield dict(row) | {"id": f"{name}/{row['question_id']}"} | _score_row(row, keys[row["question_id"]])


def _score_row(row: Mapping[str, Any], key: Question) -> dict[str, Any]:
    """A question that the engine refused counts as a wrong answer; one that is itself unusable does not count."""
    verdict = Verdict(row["verdict"])
    found: dict[str, Any] = {}
    for mode in MODES:
        if verdict is Verdict.OK:
            one = score(row["prediction"], key, mode)
        elif verdict in (Verdict.ENGINE_ERROR, Verdict.PROMPT_TOO_LONG):
            one = Score(0.0, parsed=False)
        else:
            return {f"{what}_{mode}": None for what in ("score", "parsed") for mode in MODES}
        found |= {f"score_{mode}": one.value, f"parsed_{mode}": one.parsed}
    return found


def _scores(predictions: Sequence[Mapping[str, Any]], questions: QuestionStore, config: RunConfig) -> dict[str, Any]:
    section = config.evaluation
    general = {asked.task.name for asked in section.asked if asked.general}
    counted = [row for row in predictions if row["score_strict"] is not None and row["task"] not in general]
    return summarise(
        predictions,
        _baselines(questions, config, {row["question_id"] for row in counted}),
        tasks={asked.task.name: describe(asked, section, config.data.s3) for asked in section.asked},
        samples=section.bootstrap_samples,
        seed=config.run.seed,
    )


def _baselines(questions: QuestionStore, config: RunConfig, scored: set[str]) -> list[Baseline]:
    """Majority always; the colour model only where the task has labelled questions of the train domain."""
    domain = [asked.task for asked in config.evaluation.asked if not asked.general]
    if [task.name for task in domain] != [POCKET] or domain[0].split == "validation":
        return [majority(questions.questions(scored), None)]
    from adamllm_ray.evaluation.tasks.pocket import pocket_train_questions

    test, train = questions.questions(scored, images=True), list(pocket_train_questions())

    def pixels(image: bytes) -> Any:
        import numpy as np

        return np.asarray(decode(image, config.data.images))

    return [majority(test, train), colour(test, train, pixels)]
