"""Questions -> answers of one or two models, in pools of engine replicas under Ray Data.

When the cluster has room for both pools they run at the same time, as two branches of one streaming execution;
otherwise one after the other. A question that cannot be asked passes through with its verdict; one that kills its
replica each time ends the job after ``engine.max_retries``, as only synthesis looks for such rows (`synthesis.poison`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adamllm_ray.config import EngineSection, EvaluationSection, ImageLimits, RunConfig, S3Section
from adamllm_ray.config.evaluation import MAX_NEW_TOKENS
from adamllm_ray.data import storage
from adamllm_ray.data.images import decode
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, ImageRefused
from adamllm_ray.evaluation.stores import ANSWER_SCHEMA, ROWS_PER_CALL, QuestionGroup
from adamllm_ray.evaluation.tasks import QUESTION_SCHEMA
from adamllm_ray.models.adapter import resolve_adapter
from adamllm_ray.models.chat import Turn
from adamllm_ray.models.checkpoint import resolve_model
from adamllm_ray.ray_runtime import own_error
from adamllm_ray.synthesis.actors import EngineMaker, load_chat, start_engine
from adamllm_ray.synthesis.pools import Pool, fit_pools
from adamllm_ray.synthesis.requests import Completion, Request, SamplingSpec

if TYPE_CHECKING:
    import ray.data

Row = dict[str, Any]

_COPIED = ("task", "type", "kind", "metric", "question", "answer")


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model that answers: 'base' or 'adapted', its folder, and a LoRA adapter on top (each local or s3://)."""

    name: str
    folder: str
    adapter: str | None = None


def answer(
    groups: Sequence[QuestionGroup],
    settled: Mapping[str, Collection[str]],
    contestants: Sequence[Contestant],
    config: RunConfig,
    engine_maker: EngineMaker = start_engine,
) -> Iterator[tuple[str, pa.Table]]:
    """Ask every contestant the questions in these row groups. Needs a Ray connection.

    Args:
        groups: where the questions are.
        settled: per contestant the ids of questions that it need not be asked.
        contestants: at least one.
        config: of the run.
        engine_maker: makes a replica's engine.

    Yields (contestant's name, rows of ANSWER_SCHEMA) as the answers come, in no particular order.

    Raises:
        ConfigError: not even one contestant's replicas fit into the cluster; says what is missing.
        ModelError: an engine cannot run its model.
    """
    for round_ in _rounds(contestants, config.evaluation.engine):
        branches = []
        for one, pool in round_:
            work = list(_work(groups, settled.get(one.name, ())))
            if work:
                branches.append(_branch(work, one, pool, config, engine_maker))
        if not branches:
            continue
        graph = branches[0].union(*branches[1:]) if branches[1:] else branches[0]
        for batch in _batches(graph):
            for name in batch.column("model").unique().to_pylist():
                yield name, batch.filter(pc.field("model") == name).cast(ANSWER_SCHEMA)


def _work(groups: Iterable[QuestionGroup], settled: Collection[str]) -> Iterator[pa.Table]:
    """One block per row group, holding only where it is: the replica reads it, so nothing waits for read tasks."""
    for one in groups:
        skip = [name for name in one.ids if name in settled]
        if len(skip) < len(one.ids):
            yield pa.table(
                {
                    "file": [one.file],
                    "group": [one.group],
                    "skip": pa.array([skip], pa.list_(pa.string())),
                }
            )


def _rounds(contestants: Sequence[Contestant], engine: EngineSection) -> Iterator[list[tuple[Contestant, Row]]]:
    """Contestants that run at the same time, each with its pool: all of them if they fit, else one by one."""
    try:
        pools = fit_pools({f"evaluation of {one.name}": Pool(engine, ROWS_PER_CALL) for one in contestants})
    except ConfigError:
        [pool] = fit_pools({"evaluation": Pool(engine, ROWS_PER_CALL)})
        yield from ([(one, pool)] for one in contestants)
        return
    yield list(zip(contestants, pools, strict=True))


def _branch(
    work: list[pa.Table], contestant: Contestant, pool: Row, config: RunConfig, engine_maker: EngineMaker
) -> ray.data.Dataset:
    import ray.data

    settings = (config.evaluation, config.data.images, config.run.s3)
    return ray.data.from_arrow(work).map_batches(
        Answerer,
        fn_constructor_args=(contestant, *settings, engine_maker),
        batch_size=1,
        batch_format="pyarrow",
        **pool,
    )


def _batches(graph: ray.data.Dataset) -> Iterator[pa.Table]:
    """Blocks of a running graph; what a replica raised comes out as itself, not wrapped by Ray."""
    try:
        yield from graph.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        if (ours := own_error(error)) is not None:
            raise ours from None
        raise


class Answerer:
    """One vLLM replica of one contestant, as Ray Data's batch function."""

    def __init__(
        self,
        contestant: Contestant,
        section: EvaluationSection,
        limits: ImageLimits,
        s3: S3Section,
        engine_maker: EngineMaker,
    ) -> None:
        folder = resolve_model(contestant.folder, s3)  # here, because each node has its own disk
        settings = section.engine
        if contestant.adapter is not None:
            settings = settings.model_copy(update={"lora": resolve_adapter(contestant.adapter, s3).folder})
        self._name, self._limits, self._s3 = contestant.name, limits, s3
        self._chat = load_chat(folder)
        self._engine = engine_maker(folder, settings, True)
        self._backend = getattr(self._engine, "backend", "vllm")
        self._sampling = SamplingSpec(MAX_NEW_TOKENS, stop_token_ids=tuple(self._chat.stop_ids))

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Places of questions in (see `_work`), rows of ANSWER_SCHEMA out."""
        rows = await asyncio.to_thread(lambda: [row for one in batch.to_pylist() for row in _read_rows(one, self._s3)])
        answers = {row["id"]: self._blank(row) for row in rows}
        requests = await asyncio.to_thread(self._requests, rows, answers)  # decoding frees the GIL
        for completion in await self._engine.generate(requests, self._sampling) if requests else []:
            answers[completion.id] |= self._read(completion)
        return pa.Table.from_pylist(list(answers.values()), schema=ANSWER_SCHEMA)

    def _requests(self, rows: Sequence[Row], answers: Mapping[str, Row]) -> list[Request]:
        """Requests of the usable rows; an image that is refused goes into the row's answer."""
        requests = []
        for row in rows:
            if row["verdict"] != Verdict.OK:
                continue
            try:
                picture = decode(row["image"] or b"", self._limits)
            except ImageRefused as refused:
                answers[row["id"]].update(verdict=str(refused.verdict), verdict_detail=refused.detail)
                continue
            prompt = self._chat.prompt([Turn("user", row["question"], image=True)])
            sampling = replace(self._sampling, max_tokens=row["max_new_tokens"])
            requests.append(Request(row["id"], prompt, picture, sampling))
        return requests

    def _blank(self, row: Row) -> Row:
        blank = {"question_id": row["id"], "model": self._name, "prediction": "", "finish_reason": None}
        return blank | {name: row[name] for name in (*_COPIED, "verdict", "verdict_detail")}

    def _read(self, completion: Completion) -> Row:
        if completion.error is not None:
            verdict = Verdict.PROMPT_TOO_LONG if completion.too_long else Verdict.ENGINE_ERROR
            return {"verdict": str(verdict), "verdict_detail": completion.error}
        text = self._chat.decode(completion.token_ids).strip()
        return {
            "prediction": text,
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.prompt_tokens,
            "output_tokens": completion.generated_tokens,
            "latency_s": completion.seconds,
            "backend": self._backend,
        }


def _read_rows(work: Row, s3: S3Section) -> list[Row]:
    place, skip = storage.resolve(work["file"], s3), set(work["skip"])
    group = pq.ParquetFile(place.path, filesystem=place.fs).read_row_group(work["group"])
    return [row for row in group.cast(QUESTION_SCHEMA).to_pylist() if row["id"] not in skip]
