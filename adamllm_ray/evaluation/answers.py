"""Questions -> answers of one or two models, in vLLM replica pools under Ray Data.

When the cluster has room for both pools they run at the same time, as two branches of one streaming execution;
otherwise one after the other. A question that cannot be asked passes through with its verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adamllm_ray.config import EngineSection, EvaluationSection, ImageLimits, RunConfig, S3Section
from adamllm_ray.data import storage
from adamllm_ray.data.images import decode
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, ImageRefused
from adamllm_ray.evaluation.tasks import QUESTION_SCHEMA
from adamllm_ray.models.chat import Turn
from adamllm_ray.models.checkpoint import resolve_model
from adamllm_ray.ray_runtime import own_error
from adamllm_ray.synthesis.actors import load_chat
from adamllm_ray.synthesis.engine import Completion, Engine, Request, SamplingSpec
from adamllm_ray.synthesis.pools import Pool, fit_pools

if TYPE_CHECKING:
    import ray.data

ROWS_PER_FILE = 128  # of the questions: what a replica takes at once

Row = dict[str, Any]

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("prediction", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("verdict_detail", pa.string()),
    ]
)
_COPIED = ("type", "kind", "question", "answer", "choices")


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model that answers: 'base' or 'adapted', and its folder (local or s3://)."""

    name: str
    folder: str


def answer(
    questions: Sequence[str], contestants: Sequence[Contestant], config: RunConfig
) -> Iterator[tuple[str, pa.Table]]:
    """Ask every contestant the questions in these Parquet files (paths or s3:// URIs). Needs a Ray connection.

    Yields (contestant's name, rows of ANSWER_SCHEMA) as the answers come, in no particular order.

    Raises:
        ConfigError: not even one contestant's replicas fit into the cluster; says what is missing.
        ModelError: an engine cannot run its model.
    """
    for group in _rounds(contestants, config.evaluation.engine):
        branches = [_branch(questions, contestant, pool, config) for contestant, pool in group]
        graph = branches[0].union(*branches[1:]) if branches[1:] else branches[0]
        for batch in _batches(graph):
            for name in batch.column("model").unique().to_pylist():
                yield name, batch.filter(pc.field("model") == name).cast(ANSWER_SCHEMA)


def _rounds(contestants: Sequence[Contestant], engine: EngineSection) -> Iterator[list[tuple[Contestant, Row]]]:
    """Contestants that run at the same time, each with its pool: all of them if they fit, else one by one."""
    try:
        pools = fit_pools({f"evaluation of {one.name}": Pool(engine, ROWS_PER_FILE) for one in contestants})
    except ConfigError:
        [pool] = fit_pools({"evaluation": Pool(engine, ROWS_PER_FILE)})
        yield from ([(one, pool)] for one in contestants)
        return
    yield list(zip(contestants, pools, strict=True))


def _branch(questions: Sequence[str], contestant: Contestant, pool: Row, config: RunConfig) -> ray.data.Dataset:
    """One block per file, holding only its path: the replica reads the file, so nothing waits for read tasks."""
    import ray.data

    return ray.data.from_arrow([pa.table({"file": [file]}) for file in questions]).map_batches(
        Answerer,
        fn_constructor_args=(contestant, config.evaluation, config.data.images, config.run.seed, config.run.s3),
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
        self, contestant: Contestant, section: EvaluationSection, limits: ImageLimits, seed: int, s3: S3Section
    ) -> None:
        folder = resolve_model(contestant.folder, s3)  # here, because each node has its own disk
        self._name, self._limits, self._s3 = contestant.name, limits, s3
        self._chat = load_chat(folder)
        self._engine = Engine(folder, section.engine, images=True, seed=seed)
        self._sampling = SamplingSpec(section.max_new_tokens, stop_token_ids=tuple(self._chat.stop_ids))

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Files of QUESTION_SCHEMA in, rows of ANSWER_SCHEMA out."""
        rows = await asyncio.to_thread(_read_rows, batch.column("file").to_pylist(), self._s3)
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
            requests.append(Request(row["id"], prompt, picture))
        return requests

    def _blank(self, row: Row) -> Row:
        blank = {"question_id": row["id"], "model": self._name, "prediction": "", "finish_reason": None}
        return blank | {name: row[name] for name in (*_COPIED, "verdict", "verdict_detail")}

    def _read(self, completion: Completion) -> Row:
        if completion.error is not None:
            verdict = Verdict.PROMPT_TOO_LONG if completion.too_long else Verdict.ENGINE_ERROR
            return {"verdict": str(verdict), "verdict_detail": completion.error}
        text = self._chat.decode(completion.token_ids).strip()
        return {"prediction": text, "finish_reason": completion.finish_reason}


def _read_rows(files: Sequence[str], s3: S3Section) -> list[Row]:
    rows: list[Row] = []
    for file in files:
        place = storage.resolve(file, s3)
        rows += pq.read_table(place.path, filesystem=place.fs, schema=QUESTION_SCHEMA).to_pylist()
    return rows
