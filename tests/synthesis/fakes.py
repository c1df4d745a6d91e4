"""A stand-in for vLLM in the *fault* tests, where what counts is which rows come out, not what a model says.

It writes a fixed, well-formed task for every image, sleeps a set time per row so that a kill can be aimed, and logs
every row it is asked for. It proves nothing about generation; tests/synthesis/test_pipeline.py does that with vLLM.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.config import EngineSection, RunConfig, parse_config
from adamllm_ray.data.record import RECORD_SCHEMA, record_id
from adamllm_ray.data.run import Manifest, RunFolder
from adamllm_ray.errors import ModelError
from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.synthesis.engine import Completion, Request, SamplingSpec
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, hinted


@dataclass(frozen=True)
class FakeMaker:
    """Engine maker: give it to ``synthesize(engine_maker=...)``. Each actor appends its rows to ``log/<pid>``."""

    log: str
    seconds_per_row: float = 0.0
    poison: str = ""  # the engine raises when it is asked for this id

    broken: str = ""  # the engine does not start, with this ModelError

    def __call__(self, model: str, settings: EngineSection, images: bool) -> FakeEngine:
        if self.broken:
            raise ModelError(self.broken)
        return FakeEngine(self, model, images)


class FakeEngine:
    """See the module docstring."""

    def __init__(self, maker: FakeMaker, model: str, images: bool) -> None:
        from adamllm_ray.synthesis.actors import load_chat

        self.maker, self.images = maker, images
        Path(maker.log).mkdir(exist_ok=True, parents=True)
        self.task = task_response(load_chat(model)) if images else []

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        if self.maker.poison in [request.id for request in requests]:
            raise RuntimeError("poisoned")
        if self.images:
            with (Path(self.maker.log) / f"synthesizer-{os.getpid()}").open("a") as log:
                log.writelines(f"{request.id}\n" for request in requests)
        await asyncio.sleep(self.maker.seconds_per_row * len(requests))
        return [self._answer(request, sampling) for request in requests]

    def _answer(self, request: Request, sampling: SamplingSpec) -> Completion:
        if self.images:
            return Completion(request.id, list(self.task), "fake", "stop")
        yes, *others = sampling.allowed_token_ids or ()
        return Completion(request.id, [yes], " Yes", "length", {yes: -0.1, **dict.fromkeys(others, -3.0)})


def asked_rows(log: str) -> list[str]:
    """Every id that a fake synthesizer was asked for, in all its lives."""
    return [line for file in sorted(Path(log).glob("synthesizer-*")) for line in file.read_text().split()]


def turns(chat: ChatFormat, *pairs: tuple[str, str]) -> list[int]:
    """Response ids of (user text, assistant text) turns, the last one closed, without the end-of-text token."""
    ids: list[int] = []
    for index, (user, assistant) in enumerate(pairs):
        ids += [*(chat.user_open if index else ()), *chat.text_ids(user), *chat.assistant_open]
        ids += chat.text_ids(assistant)
    return [*ids, *chat.turn_end]


def task_response(chat: ChatFormat) -> list[int]:
    """A finished, well-formed response."""
    pairs = (
        (hinted(HINT_PRECISE, "What is it?"), "a circle"),
        (hinted(HINT_INFORMATIVE, "What is it?"), "It is a circle."),
    )
    return [*turns(chat, *pairs), chat.eos_id]


def png(red: int, green: int = 0) -> bytes:
    """A 60 x 60 image of one colour."""
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (60, 60), (red % 256, green % 256, 40)).save(sink, "PNG")
    return sink.getvalue()


def write_ingest(run: RunFolder, rows: list[dict[str, object]]) -> Manifest:
    """A finished ingest stage with these rows ({image, caption} and optionally verdict), in one Parquet file."""
    stage = run.stage("ingest")
    stage.begin({"test": len(rows)})
    records = [
        {
            "id": record_id(row["image"], str(row["caption"]), str(number)),  # type: ignore[arg-type]
            "source": "test",
            "key": str(number),
            "verdict": "ok",
            **row,
        }
        for number, row in enumerate(rows)
    ]
    Path(stage.data).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records, schema=RECORD_SCHEMA), f"{stage.data}/part-0.parquet")
    verdicts: dict[str, int] = {}
    for record in records:
        verdicts[str(record["verdict"])] = verdicts.get(str(record["verdict"]), 0) + 1
    return stage.finish(rows_in=len(records), verdicts=verdicts, seconds=0.0)


def config_for(output: Path, vlm: Path, judge: Path, **synthesis: object) -> RunConfig:
    """A run configuration with small engines and blocks."""
    engine = {"max_model_len": 256, "max_num_seqs": 16, "kv_cache_gib": 0.1, "cpus_per_replica": 1.0}
    return parse_config(
        {
            "run": {"output": str(output)},
            "models": {"base": str(vlm), "synthesizer": str(vlm), "judge": str(judge)},
            "synthesis": {"engine": engine, "max_new_tokens": 32, "rows_per_block": 10, "batch_size": 5, **synthesis},
            "judge": {"engine": engine, "batch_size": 10, "few_shot": False},
        }
    )
