"""Last stage before the report: base and adapted model answer the same questions, greedily, in vLLM.

    adamllm evaluate CONFIG                    or    adamllm run CONFIG

::

    evaluate/
    ├── questions/part-*.parquet     QUESTION_SCHEMA, images included: what was asked, whatever becomes of the source
    ├── answers/<model>.parquet      one per finished model: a resumed run does not ask it again
    └── data/predictions.parquet     one row per (model, question), scored

Rows in are questions x models. The scores, with intervals and baselines, are in the manifest's ``extra["scores"]``.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from adamllm_ray import progress
from adamllm_ray.config import RunConfig, S3Section
from adamllm_ray.data import storage
from adamllm_ray.data.images import decode
from adamllm_ray.data.run import Manifest, RunFolder, StageFolder, code_version
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, ModelError, RowAccountingError, SourceError, TooManyFailures
from adamllm_ray.evaluation.answers import ANSWER_SCHEMA, ROWS_PER_FILE, Contestant, answer
from adamllm_ray.evaluation.baselines import Baseline, colour, majority
from adamllm_ray.evaluation.metrics import Score, score
from adamllm_ray.evaluation.scores import summarise
from adamllm_ray.evaluation.tasks import QUESTION_SCHEMA, Question, load_questions
from adamllm_ray.models.card import refresh_card
from adamllm_ray.ray_runtime import ray_session

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


def evaluate(config: RunConfig, run: RunFolder, *, force_new: bool = False) -> Manifest:
    """Score the base model and ``train/model`` on ``evaluation.task``. Connects to Ray, or starts a local one.

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
    total = _store_questions(stage, config)
    _ask(stage, contestants, config, total)
    predictions = [row for one in contestants for row in _scored(_answers(stage, one.name), one.name, total)]
    scored = {row["question_id"] for row in predictions if row["score"] is not None}
    scores = summarise(
        predictions,
        _baselines(stage, config, scored),
        samples=config.evaluation.bootstrap_samples,
        seed=config.run.seed,
    )
    table = pa.Table.from_pylist(predictions, schema=PREDICTION_SCHEMA)
    _write_parquet(stage, "data/predictions.parquet", table)
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
    code = [f"{package}.{name}" for name in ("metrics", "intervals", "baselines", "scores", "answers", "runner")]
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


def _store_questions(stage: StageFolder, config: RunConfig) -> int:
    """Write the questions once; returns how many there are."""
    done = storage.read_small(stage.place.child("questions.json"))
    if done is not None:
        return int(json.loads(done)["count"])
    storage.remove_folder(stage.place.child("questions"))
    count = usable = files = 0
    with progress.task("questions") as bar:
        for rows in _chunks(load_questions(config.evaluation, config.run.seed, config.data.s3), ROWS_PER_FILE):
            table = pa.Table.from_pylist([question.row() for question in rows], schema=QUESTION_SCHEMA)
            _write_parquet(stage, f"questions/part-{files:05}.parquet", table)
            files, count = files + 1, count + len(rows)
            usable += sum(question.verdict is Verdict.OK for question in rows)
            bar.update(count)
    if not usable:
        raise SourceError(
            f"evaluation.task: {config.evaluation.task} holds no question that can be asked ({count} rows)"
        )
    storage.write_small(stage.place.child("questions.json"), json.dumps({"count": count}).encode())
    return count


def _chunks(items: Iterable[Question], size: int) -> Iterable[list[Question]]:
    chunk: list[Question] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _ask(stage: StageFolder, contestants: Sequence[Contestant], config: RunConfig, total: int) -> None:
    """Get the answers that are not there yet; a model's file appears when all of its answers are in."""
    waiting = [one for one in contestants if not _exists(stage, one.name)]
    if not waiting:
        return
    tables: dict[str, list[pa.Table]] = {one.name: [] for one in waiting}
    files = [f"{stage.uri}/questions/{name}" for name, _ in storage.list_files(stage.place.child("questions"))]
    done = 0
    with ray_session(), progress.task(STAGE, total * len(waiting)) as bar:
        for name, table in answer(files, waiting, config):
            tables[name].append(table)
            done += table.num_rows
            bar.update(done)
            if sum(part.num_rows for part in tables[name]) == total:
                answers = pa.concat_tables(tables[name]).sort_by("question_id")
                _check_refusals(answers, name)
                _write_parquet(stage, f"answers/{name}.parquet", answers)
    if done != total * len(waiting):
        raise RowAccountingError(f"stage '{STAGE}': {total} questions x {len(waiting)} models, but {done} answers")


def _check_refusals(answers: pa.Table, name: str) -> None:
    rows = answers.select(["verdict", "verdict_detail"]).to_pylist()
    refused = [row for row in rows if row["verdict"] in (Verdict.ENGINE_ERROR, Verdict.PROMPT_TOO_LONG)]
    if len(refused) > MAX_REFUSED_SHARE * len(rows):
        raise TooManyFailures(
            f"the {name} model's engine refused {len(refused)} of {len(rows)} questions, the first with: "
            f"{refused[0]['verdict_detail']}"
        )


def _exists(stage: StageFolder, name: str) -> bool:
    info = stage.fs.get_file_info(f"{stage.path}/answers/{name}.parquet")
    return bool(info.type == pafs.FileType.File)


def _answers(stage: StageFolder, name: str) -> pa.Table:
    with storage.storage_errors("read the answers", stage.uri):
        return pq.read_table(f"{stage.path}/answers/{name}.parquet", filesystem=stage.fs, schema=ANSWER_SCHEMA)


@dataclass(frozen=True, slots=True)
class _Key:
    """The answer key of a stored row."""

    answer: str
    kind: str
    choices: Sequence[str] | None


def _scored(answers: pa.Table, name: str, total: int) -> list[dict[str, Any]]:
    """Prediction rows of one model. Raises RowAccountingError unless every question occurs exactly once."""
    rows = answers.to_pylist()
    if len(rows) != total or len({row["question_id"] for row in rows}) != total:
        raise RowAccountingError(f"stage '{STAGE}': {total} questions, but {len(rows)} answers of the {name} model")
    return [row | {"id": f"{name}/{row['question_id']}"} | _score_row(row) for row in rows]


def _score_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question that the engine refused counts as a wrong answer; one that is itself unusable does not count."""
    verdict = Verdict(row["verdict"])
    if verdict in (Verdict.ENGINE_ERROR, Verdict.PROMPT_TOO_LONG):
        found = Score(0, parsed=False)
    elif verdict is not Verdict.OK:
        return {"score": None, "parsed": None, "recall": None}
    else:
        found = score(row["prediction"], _Key(row["answer"], row["kind"], row["choices"]))
    return {"score": found.value, "parsed": found.parsed, "recall": found.recall}


def _baselines(stage: StageFolder, config: RunConfig, scored: set[str]) -> list[Baseline]:
    """Majority always; the colour model only where the task has labelled questions of the train domain."""
    if config.evaluation.task != "pocket":
        return [majority(_stored_questions(stage, scored, images=False), None)]
    from adamllm_ray.evaluation.tasks.pocket import pocket_train_questions

    test, train = _stored_questions(stage, scored, images=True), list(pocket_train_questions())

    def pixels(image: bytes) -> Any:
        import numpy as np

        return np.asarray(decode(image, config.data.images))

    return [majority(test, train), colour(test, train, pixels)]


def _stored_questions(stage: StageFolder, scored: set[str], *, images: bool) -> list[Question]:
    """The questions that count, with or without their images."""
    columns = [name for name in QUESTION_SCHEMA.names if images or name != "image"]
    data = pads.dataset(f"{stage.path}/questions", filesystem=stage.fs, format="parquet", schema=QUESTION_SCHEMA)
    rows = (row for batch in data.to_batches(columns=columns) for row in batch.to_pylist() if row["id"] in scored)
    return [Question(**({"image": None} | row | {"verdict": Verdict(row["verdict"])})) for row in rows]


def _write_parquet(stage: StageFolder, name: str, table: pa.Table) -> None:
    """Whole or not at all."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    with storage.storage_errors("write evaluation rows", stage.uri):
        place = stage.place.child(name)
        storage.make_folder(storage.Location(place.fs, place.path.rpartition("/")[0], place.uri, place.local))
        storage.write_small(place, sink.getvalue())
