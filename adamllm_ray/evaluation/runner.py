"""Last stage before the report: base and adapted model answer the same questions, greedily, in vLLM.

    adamllm evaluate CONFIG                    or    adamllm run CONFIG

What is asked and answered is kept as it comes (stores.py), so a run that was killed asks only what it did not know
yet. ``data/predictions.parquet`` has one row per (model, question), scored.

Rows in are questions x models. The scores, with intervals and baselines, are in the manifest's ``extra["scores"]``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from adamllm_ray import progress
from adamllm_ray.config import RunConfig, S3Section
from adamllm_ray.data import storage
from adamllm_ray.data.images import decode
from adamllm_ray.data.manifest import Manifest, code_version
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, ModelError, RowAccountingError, SourceError, TooManyFailures
from adamllm_ray.evaluation.answers import Contestant, answer
from adamllm_ray.evaluation.baselines import Baseline, colour, majority
from adamllm_ray.evaluation.metrics import Score, score
from adamllm_ray.evaluation.scores import summarise
from adamllm_ray.evaluation.stores import ANSWER_SCHEMA, AnswerStore, QuestionStore, write_table
from adamllm_ray.evaluation.tasks import load_questions
from adamllm_ray.models.card import refresh_card
from adamllm_ray.ray_runtime import ray_session
from adamllm_ray.synthesis.actors import EngineMaker, start_engine

STAGE = "evaluate"
MAX_REFUSED_SHARE = 0.05  # of a model's questions that its engine may refuse before the figures mean nothing

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # model/question_id: unique
        *ANSWER_SCHEMA,
        pa.field("score", pa.int8()),  # null: the question itself could not be used
        pa.field("parsed", pa.bool_()),
        pa.field("recall", pa.float32()),
    ]
)


def evaluate(
    config: RunConfig, run: RunFolder, *, force_new: bool = False, engine_maker: EngineMaker = start_engine
) -> Manifest:
    """Score the base model and ``train/model`` on ``evaluation.task``. Connects to Ray, or starts a local one.

    Args:
        config: the run's configuration.
        run: its folder, with a finished train stage.
        force_new: throw away what is there of this stage.
        engine_maker: makes a replica's engine; vLLM unless a test says otherwise.

    Raises:
        ConfigError: ``evaluation.task`` is empty.
        ModelError: there is no trained model yet, or one of the two cannot be run.
        SourceError: the task cannot be read, or holds no usable question.
        TooManyFailures: an engine refused more than 5 % of the questions.
    """
    started = time.monotonic()
    if not config.evaluation.task:
        raise ConfigError("evaluation.task is empty: name a .parquet or .jsonl file with questions, or 'pocket'")
    contestants = _contestants(config, run)
    stage = run.stage(STAGE)
    if stage.begin(fingerprint(config, contestants), force_new=force_new) == "finished":
        finished = stage.manifest()
        if finished is not None:
            refresh_card(config, run)
            return finished
    questions = QuestionStore(stage)
    total, usable = questions.fill(load_questions(config.evaluation, config.run.seed, config.data.s3))
    if not usable:
        raise SourceError(
            f"evaluation.task: {config.evaluation.task} holds no question that can be asked ({total} rows)"
        )
    stores = {one.name: AnswerStore(stage, one.name) for one in contestants}
    _ask(questions, stores, contestants, config, total, engine_maker)
    predictions = [row for name, store in stores.items() for row in _scored(store.rows(), name, total)]
    scored = {row["question_id"] for row in predictions if row["score"] is not None}
    scores = summarise(
        predictions,
        _baselines(questions, config, scored),
        samples=config.evaluation.bootstrap_samples,
        seed=config.run.seed,
    )
    table = pa.Table.from_pylist(predictions, schema=PREDICTION_SCHEMA)
    write_table(stage.place.child("data/predictions.parquet"), table)
    manifest = stage.finish(
        rows_in=total * len(contestants),
        verdicts=Counter(row["verdict"] for row in predictions),
        extra={"scores": scores, "questions": total, "models": {one.name: one.folder for one in contestants}},
        seconds=time.monotonic() - started,
    )
    refresh_card(config, run)
    return manifest


def fingerprint(config: RunConfig, contestants: Sequence[Contestant]) -> dict[str, Any]:
    """What the scores depend on: questions, weights, decoding, and the code that reads answers."""
    from adamllm_ray.models.checkpoint import model_fingerprint

    section = config.evaluation
    package = "adamllm_ray.evaluation"
    metrics = ("", ".contract", ".text", ".free", ".labels", ".options", ".names", ".rouge")
    names = (*(f"metrics{name}" for name in metrics), "intervals", "baselines", "scores", "answers", "stores", "runner")
    code = [f"{package}.{name}" for name in names]
    return {
        "task": section.task,
        "questions": _task_fingerprint(section.task, config.data.s3),
        "limit": section.limit,
        "max_new_tokens": section.max_new_tokens,
        "max_model_len": section.engine.max_model_len,
        "dtype": section.engine.dtype,
        "bootstrap_samples": section.bootstrap_samples,
        "seed": config.run.seed,
        "images": config.data.images.model_dump(),
        "models": {one.name: model_fingerprint(one.folder, config.run.s3) for one in contestants},
        "code": code_version(*code, f"{package}.tasks", f"{package}.tasks.table", f"{package}.tasks.pocket"),
    }


def _task_fingerprint(task: str, s3: S3Section) -> str:
    if task == "pocket":
        return code_version(*(f"adamllm_ray.pocket.{name}" for name in ("domain", "chips", "language", "regions")))
    try:
        return storage.sha256(storage.resolve(task, s3))
    except OSError as error:
        raise SourceError(f"evaluation.task: cannot read {task}: {error}") from error


def _contestants(config: RunConfig, run: RunFolder) -> list[Contestant]:
    from adamllm_ray.models.checkpoint import resolve_model

    trained = run.stage("train")
    if trained.manifest() is None:
        raise ModelError(
            f"there is no trained model in {trained.uri}: run `adamllm train` with this configuration first"
        )
    return [
        Contestant("base", resolve_model(config.models.base)),
        Contestant("adapted", f"{trained.uri}/model"),
    ]


def _ask(
    questions: QuestionStore,
    stores: Mapping[str, AnswerStore],
    contestants: Sequence[Contestant],
    config: RunConfig,
    total: int,
    engine_maker: EngineMaker,
) -> None:
    """Get the answers that are not there yet. What has come is on disk, however this ends."""
    settled = {name: set(store.settled) for name, store in stores.items()}
    waiting = [one for one in contestants if len(settled[one.name]) < total]
    if not waiting:
        return
    with ray_session(), progress.task(STAGE, total * len(stores)) as bar:
        bar.update(sum(map(len, settled.values())))
        try:
            for name, table in answer(list(questions.groups()), settled, waiting, config, engine_maker):
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


@dataclass(frozen=True, slots=True)
class _Key:
    """The answer key of a stored row."""

    id: str
    answer: str
    kind: str
    choices: Sequence[str] | None
    metric: str = "auto"


def _scored(rows: Sequence[Mapping[str, Any]], name: str, total: int) -> list[dict[str, Any]]:
    """Prediction rows of one model. Raises RowAccountingError unless every question was answered."""
    if len(rows) != total:
        raise RowAccountingError(f"stage '{STAGE}': {total} questions, but {len(rows)} answers of the {name} model")
    return [dict(row) | {"id": f"{name}/{row['question_id']}"} | _score_row(row) for row in rows]


def _score_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question that the engine refused counts as a wrong answer; one that is itself unusable does not count."""
    verdict = Verdict(row["verdict"])
    if verdict in (Verdict.ENGINE_ERROR, Verdict.PROMPT_TOO_LONG):
        found = Score(0.0, parsed=False)
    elif verdict is not Verdict.OK:
        return {"score": None, "parsed": None, "recall": None}
    else:
        key = _Key(row["question_id"], row["answer"], row["kind"], row["choices"])
        found = score(row["prediction"], key, "strict")
    return {"score": int(found.value), "parsed": found.parsed, "recall": None}


def _baselines(questions: QuestionStore, config: RunConfig, scored: set[str]) -> list[Baseline]:
    """Majority always; the colour model only where the task has labelled questions of the train domain."""
    if config.evaluation.task != "pocket":
        return [majority(questions.questions(scored, images=False), None)]
    from adamllm_ray.evaluation.tasks.pocket import pocket_train_questions

    test, train = questions.questions(scored, images=True), list(pocket_train_questions())

    def pixels(image: bytes) -> Any:
        import numpy as np

        return np.asarray(decode(image, config.data.images))

    return [majority(test, train), colour(test, train, pixels)]
