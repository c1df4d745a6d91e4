"""The two stateful steps of the graph: `Synthesizer` asks the VLM and parses, `Judge` compares the two answers.

Each takes an Arrow batch in SYNTHESIZED_SCHEMA form and returns as many rows as it got, in the same order. What goes
wrong with a row becomes its ``task_verdict``, also that its replica does not survive it (see `poison`); what goes wrong
otherwise is raised and stops the job.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from adamllm_ray.data.images import decode
from adamllm_ray.data.record import RECORD_SCHEMA, SYNTHESIS_FIELDS, SYNTHESIZED_SCHEMA
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused, ModelError, TooManyFailures
from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.models.checkpoint import read_config, resolve_model
from adamllm_ray.models.lean import lean_transformers
from adamllm_ray.synthesis.attempts import (
    Attempt,
    from_row,
    is_open,
    needs_retry,
    request_id,
    row_columns,
    sampling,
    spoken_for,
)
from adamllm_ray.synthesis.consistency import judge_prompt, judgement, label_ids
from adamllm_ray.synthesis.engine import Completion, Engine, Request, SamplingSpec, TextEngine, match_completions
from adamllm_ray.synthesis.poison import DETAIL, ENOUGH_ROWS, Attendance, Turns, found_in
from adamllm_ray.synthesis.pools import MOST_CALLS
from adamllm_ray.synthesis.prompts import synthesis_prompt
from adamllm_ray.synthesis.protocol import Protocol, chat_of, check_image_token
from adamllm_ray.synthesis.triplets import Triplet, TripletParser, foreign_url

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection, ImageLimits, JudgeSection, SynthesisSection

Row = dict[str, Any]
EngineMaker = Callable[[str, "EngineSection", bool], TextEngine]
AHEAD = 1.5  # rows decoded or at the engine, per slot of the engine
# rows decoded in one go, if the engine has so many slots: each trip to another thread waits for the GIL
PREPARED = 32


def start_engine(model: str, settings: EngineSection, images: bool) -> TextEngine:
    """The real thing: a vLLM replica."""
    return Engine(model, settings, images=images)


@dataclass
class FailureCeiling:
    """Stops a replica whose rows fail one after the other, long before all rows are spoilt."""

    limit: float
    asked: int = 0
    failed: int = 0

    def count(self, verdicts: Sequence[str | None]) -> None:
        """Add a batch. Raises TooManyFailures when the failed share is above the limit."""
        self.asked += len(verdicts)
        self.failed += sum(name is not None and Verdict(name).outcome == "failed" for name in verdicts)
        if self.asked >= ENOUGH_ROWS and self.failed > self.limit * self.asked:
            raise TooManyFailures(
                f"synthesis: {self.failed} of {self.asked} rows failed at one replica, the limit is {self.limit:.1%} "
                "(synthesis.max_failed_share); task_detail in the rows written so far says why"
            )


@dataclass
class Synthesizer:
    """Image and caption in, response and triplet (or a verdict) out. One per replica of the synthesizer pool."""

    model: str
    settings: SynthesisSection
    limits: ImageLimits
    seed: int
    engine_maker: EngineMaker = start_engine
    record: Any = None  # of deaths, see poison.death_record
    ceiling: FailureCeiling = field(init=False)

    def __post_init__(self) -> None:
        self.model = resolve_model(self.model)  # here, because each node has its own disk
        self.chat = load_chat(self.model, self.settings.protocol)
        use_cut = self.settings.cut_responses == "use"
        self.parser = TripletParser(self.chat, self.settings.question_match, use_cut=use_cut)
        self.engine = self.engine_maker(self.model, self.settings.engine, True)
        slots = self.settings.engine.slots
        self.prepared = min(PREPARED, slots)
        self.turns = Turns(self.prepared + math.ceil(AHEAD * slots))
        share = self.settings.max_failed_share
        self.attendance = Attendance("synthesizer", self.settings.engine, share, self.turns, self.record)
        self.ceiling = FailureCeiling(share)
        self.sampling = SamplingSpec(
            max_tokens=self.settings.max_new_tokens,
            stop_token_ids=(self.parser.end_id,),
        )

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Add the synthesis columns; rows that are ready for the judge have no ``task_verdict`` yet."""
        rows: list[Row] = batch.select(["id", "image", "caption", "verdict"]).to_pylist()
        usable = [row["id"] for row in rows if _usable(row)]
        deaths = await self.attendance.begin(usable)
        apart = {row["id"]: row for row in rows if row["id"] in deaths}
        clear = [row for row in rows if row["id"] not in deaths]
        parts = [clear[start : start + self.prepared] for start in range(0, len(clear), self.prepared)]
        few, many = await asyncio.gather(  # the few first: a replica that dies again soon has then got on with them
            self.attendance.apart(deaths, lambda few: self._few([apart[name] for name in few])),
            asyncio.gather(*map(self._part, parts)),
        )
        columns = dict.fromkeys(found_in(deaths), _verdict(Verdict.ENGINE_DIED, DETAIL))
        columns |= {name: result for part in (*few, *many) for name, result in part.items()}
        await self.attendance.end(usable)
        self.ceiling.count([columns[name].get("task_verdict") for name in usable])
        return _with_columns(batch, [columns[row["id"]] for row in rows])

    async def _part(self, rows: Sequence[Row]) -> dict[str, Row]:
        """Columns of a few rows, decoded when the turn of all of them has come, so few images are in memory."""
        await self.turns.take(len(rows))
        await self.attendance.open([row["id"] for row in rows if _usable(row)])
        return await self._few(rows, self._turn_over)

    async def _few(self, rows: Sequence[Row], over: Callable[[str], None] = lambda name: None) -> dict[str, Row]:
        """Columns of rows whose turn it is, by id. ``over`` is called for each that is done."""
        prepared = await asyncio.to_thread(lambda: [self._prepare(row) for row in rows])  # decoding frees the GIL

        async def one(row: Row, request: Request | Row) -> Row:
            try:
                return await self._synthesized(row, request)
            finally:
                over(row["id"])

        done = await asyncio.gather(*map(one, rows, prepared))
        return {row["id"]: columns for row, columns in zip(rows, done, strict=True)}

    def _turn_over(self, name: str) -> None:
        self.turns.give()
        self.attendance.close([name])

    async def _synthesized(self, row: Row, request: Request | Row) -> Row:
        """The row's columns so far."""
        if not isinstance(request, Request):
            return request
        tried = await self._ask(request, row, range(self.settings.candidates), self.settings.temperature)
        if self.settings.retry_temperature is not None and needs_retry(tried):
            tried += await self._ask(request, row, [self.settings.candidates], self.settings.retry_temperature)
        if not self.settings.attempts_kept:
            return row_columns(tried[0])
        return {"attempts": tried} if any(map(is_open, tried)) else spoken_for(tried, self.settings.tasks_per_image)

    async def _ask(self, request: Request, row: Row, numbers: Iterable[int], temperature: float) -> list[Attempt]:
        """Attempts with these numbers, all at the engine at the same time."""
        requests = []
        for number in numbers:
            spec = sampling(self.sampling, temperature, self.seed, row["id"], number)
            requests.append(replace(request, id=request_id(row["id"], number), sampling=spec))
        completions = await _generate(self.engine, requests, self.sampling)
        return [
            {"temperature": temperature, "seed": asked.sampling.seed if asked.sampling else None} | attempt
            for asked, completion in zip(requests, completions, strict=True)
            for attempt in self._attempts(completion, row["caption"])
        ]

    def _prepare(self, row: Row) -> Request | Row:
        """The row's request, or the verdict that says why there is none."""
        if not _usable(row):
            return _verdict(Verdict.NOT_SYNTHESIZED, str(row["verdict"]))
        try:
            image = decode(row["image"] or b"", self.limits)
        except ImageRefused as refusal:  # ingest saw it whole: the limits were lowered, or storage damaged it
            return _verdict(Verdict.NOT_SYNTHESIZED, str(refusal))
        return Request(row["id"], synthesis_prompt(self.chat, row["caption"]), image)

    def _attempts(self, completion: Completion, caption: str) -> list[Attempt]:
        """The response's tasks, as many as are wanted of it, or one attempt that says why there is none."""
        if completion.error is not None:
            return [_engine_error(completion)]
        found = self.parser.read(completion.token_ids, completion.finish_reason)
        written: Attempt = {
            "response_ids": completion.token_ids,
            "response": self.chat.decode(completion.token_ids, keep_special=True),
            "finish_reason": completion.finish_reason,
            "segments": found.segments,
            "pairs": found.pairs,
            "triplets": len(found.triplets),
        }
        if found.verdict is not None:
            return [written | _because(found.verdict, found.detail)]
        wanted = found.triplets[: self.settings.tasks_per_image]
        return [written | _task(triplet, caption) for triplet in wanted]


@dataclass
class Judge:
    """Probabilities of Yes / No / Open for each triplet, and the final ``task_verdict``. One per judge replica."""

    model: str
    settings: JudgeSection
    max_failed_share: float
    engine_maker: EngineMaker = start_engine
    tasks_per_image: int = 1
    record: Any = None  # of deaths, see poison.death_record

    def __post_init__(self) -> None:
        lean_transformers()
        from transformers import AutoTokenizer

        self.model = resolve_model(self.model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.model, local_files_only=True)
        self.labels = label_ids(self.tokenizer)
        self.engine = self.engine_maker(self.model, self.settings.engine, False)
        self.turns = Turns(MOST_CALLS)  # a batch takes one
        settings = self.settings.engine
        self.attendance = Attendance("judge", settings, self.max_failed_share, self.turns, self.record)
        self.ceiling = FailureCeiling(self.max_failed_share)
        self.sampling = SamplingSpec(
            max_tokens=1, allowed_token_ids=tuple(self.labels.values()), logprobs=len(self.labels)
        )

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Judge the rows without a ``task_verdict``; the others pass as they are."""
        columns = [column.name for column in SYNTHESIS_FIELDS]
        results: list[Row] = batch.select(columns).to_pylist()
        ids: list[str] = batch.column("id").to_pylist()
        tried = {
            index: result["attempts"] or [from_row(result)]
            for index, result in enumerate(results)
            if result["task_verdict"] is None
        }
        await self._judge({ids[index]: attempts for index, attempts in tried.items()})
        for index, attempts in tried.items():
            several = results[index]["attempts"] is not None
            results[index] |= spoken_for(attempts, self.tasks_per_image) if several else row_columns(attempts[0])
        self.ceiling.count([results[index]["task_verdict"] for index in tried])
        return _with_columns(batch.select(RECORD_SCHEMA.names), results)

    async def _judge(self, tried: Mapping[str, list[Attempt]]) -> None:
        """Add probabilities and verdict to the open attempts of these rows."""
        deaths = await self.attendance.begin([*tried])
        await asyncio.gather(
            self.attendance.apart(deaths, lambda few: self._few({name: tried[name] for name in few})),
            self._part({name: attempts for name, attempts in tried.items() if name not in deaths}),
        )
        for name in found_in(deaths):
            for one in filter(is_open, tried[name]):
                one.update(_because(Verdict.ENGINE_DIED, f"judge: {DETAIL}"))
        await self.attendance.end([*tried])

    async def _part(self, tried: Mapping[str, list[Attempt]]) -> None:
        await self.turns.take(1)
        try:
            await self.attendance.open([*tried])
            await self._few(tried)
        finally:
            self.turns.give()
        self.attendance.close(tried)

    async def _few(self, tried: Mapping[str, list[Attempt]]) -> None:
        """All of these at the engine at the same time."""
        places = [
            (request_id(name, number), one)
            for name, attempts in tried.items()
            for number, one in enumerate(attempts)
            if is_open(one)
        ]
        # tokenizing frees the GIL
        prompts = await asyncio.to_thread(lambda: [self._prompt(task) for _, task in places])
        requests = [Request(name, prompt) for (name, _), prompt in zip(places, prompts, strict=True)]
        completions = await _generate(self.engine, requests, self.sampling)
        for (_, task), completion in zip(places, completions, strict=True):
            task.update(self._verdict(completion))

    def _prompt(self, task: Attempt) -> list[int]:
        return judge_prompt(
            self.tokenizer, task["instruction"], task["informative"], task["precise"], self.settings.few_shot
        )

    def _verdict(self, completion: Completion) -> Attempt:
        if completion.error is not None:
            return _engine_error(completion, "judge: ")
        try:
            found = judgement(completion.logprobs, self.labels)
        except ModelError as error:  # not-a-number from a broken kernel, say
            return _because(Verdict.ENGINE_ERROR, str(error))
        threshold = None if self.settings.keep == "exact" else self.settings.threshold
        chances = {"judge_yes": found.yes, "judge_no": found.no, "judge_open": found.open}
        return chances | _because(found.verdict(threshold))


async def _generate(engine: TextEngine, requests: Sequence[Request], spec: SamplingSpec) -> list[Completion]:
    """One completion per request, in their order. Nobody is asked for nothing."""
    return match_completions(requests, await engine.generate(requests, spec)) if requests else []


def load_chat(model: str, protocol: Protocol = "chat") -> ChatFormat:
    """Chat format of a VLM folder: its processor knows the template and the image token, unless the protocol does."""
    lean_transformers()
    from transformers import AutoProcessor

    chat = chat_of(AutoProcessor.from_pretrained(model, local_files_only=True), protocol)
    check_image_token(chat, read_config(model), protocol)
    return chat


def _task(triplet: Triplet, caption: str) -> Attempt:
    """Columns of a task, or its verdict where it is not safe."""
    url = foreign_url(triplet, caption)
    if url is not None:
        return _because(Verdict.RESPONSE_UNSAFE, f"not in the caption: {url[:200]}")
    return {"instruction": triplet.question, "informative": triplet.informative, "precise": triplet.precise}


def _usable(row: Row) -> bool:
    return bool(row["verdict"] == Verdict.OK)


def _verdict(verdict: Verdict, detail: str | None = None) -> Row:
    return {"task_verdict": str(verdict), "task_detail": detail or None}


def _because(verdict: Verdict, detail: str | None = None) -> Attempt:
    return {"verdict": str(verdict), "detail": detail}


def _engine_error(completion: Completion, prefix: str = "") -> Attempt:
    verdict = Verdict.PROMPT_TOO_LONG if completion.too_long else Verdict.ENGINE_ERROR
    return _because(verdict, prefix + str(completion.error))


def _with_columns(batch: pa.Table, results: Sequence[Row]) -> pa.Table:
    """The batch with the synthesis columns appended, in SYNTHESIZED_SCHEMA, absent values null."""
    added = [pa.array([result.get(column.name) for result in results], column.type) for column in SYNTHESIS_FIELDS]
    table = pa.Table.from_arrays(
        [*batch.select(RECORD_SCHEMA.names).cast(RECORD_SCHEMA).columns, *added], schema=SYNTHESIZED_SCHEMA
    )
    return table
