"""The two actors called directly, without Ray, on the fake engine: every row that goes in comes out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pytest

from adamllm_ray.data.record import RECORD_SCHEMA, SYNTHESIZED_SCHEMA
from adamllm_ray.errors import RowAccountingError, TooManyFailures
from adamllm_ray.synthesis.actors import FailureCeiling, Judge, Synthesizer
from adamllm_ray.synthesis.engine import Completion
from tests.synthesis.fakes import FakeEngine, FakeMaker, config_for, png


@pytest.fixture
def synthesizer(tiny_vlm: Path, tiny_judge: Path, tmp_path: Path) -> Synthesizer:
    config = config_for(tmp_path, tiny_vlm, tiny_judge)
    return Synthesizer(str(tiny_vlm), config.synthesis, config.data.images, 0, FakeMaker(str(tmp_path / "log")))


@pytest.fixture
def judge(tiny_vlm: Path, tiny_judge: Path, tmp_path: Path) -> Judge:
    config = config_for(tmp_path, tiny_vlm, tiny_judge)
    return Judge(str(tiny_judge), config.judge, 0.05, FakeMaker(str(tmp_path / "log")))


def batch(**changes: dict[str, Any]) -> pa.Table:
    row = {"source": "t", "key": "k", "image": png(9), "caption": "a circle", "verdict": "ok"}
    return pa.Table.from_pylist([{"id": name, **row, **change} for name, change in changes.items()], RECORD_SCHEMA)


def test_every_row_comes_out_in_order(synthesizer: Synthesizer, judge: Judge) -> None:
    rows = batch(
        a={},
        b={"image": None, "verdict": "image_missing"},
        c={"image": b"no image at all"},
        d={"verdict": "duplicate"},
        e={},
    )
    written = asyncio.run(synthesizer(rows))
    assert written.schema == SYNTHESIZED_SCHEMA
    assert written.column("task_verdict").to_pylist() == [None, *["not_synthesized"] * 3, None]
    judged = asyncio.run(judge(written))
    assert judged.schema == SYNTHESIZED_SCHEMA
    assert judged.column("id").to_pylist() == list("abcde")
    assert judged.column("task_verdict").to_pylist() == ["kept", *["not_synthesized"] * 3, "kept"]
    assert judged.column("task_detail").to_pylist()[1:4:2] == ["image_missing", "duplicate"]
    assert "image_unrecognised" in judged.column("task_detail").to_pylist()[2]
    first = judged.slice(0, 1).to_pylist()[0]
    assert (first["instruction"], first["precise"], first["informative"]) == (
        "What is it?",
        f"circle {crc32(b'a') % 50}",  # what the stand-in says of row a
        f"It is circle {crc32(b'a') % 50}.",
    )
    assert first["judge_yes"] + first["judge_no"] + first["judge_open"] == pytest.approx(1)
    assert judged.select(RECORD_SCHEMA.names).equals(rows)


def test_batch_without_work_asks_nobody(
    synthesizer: Synthesizer, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> list[Completion]:
        raise AssertionError("asked")

    monkeypatch.setattr(FakeEngine, "generate", never)
    written = asyncio.run(synthesizer(batch(a={"verdict": "duplicate"})))
    assert asyncio.run(judge(written)).column("task_verdict").to_pylist() == ["not_synthesized"]


def answering(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    async def generate(_: FakeEngine, requests: Any, sampling: Any) -> list[Completion]:
        return [make(request.id) for request in requests]

    monkeypatch.setattr(FakeEngine, "generate", generate)


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        (Completion("", error="VLLMValidationError: longer than the maximum model length of 9"), "prompt_too_long"),
        (Completion("", error="EngineGenerateError: "), "engine_error"),
        (Completion("", [], "stop"), "response_empty"),
        (Completion("", [300, 301], "length"), "response_truncated"),
        (Completion("", [300, 301], "stop"), "response_unparsable"),
    ],
)
def test_what_the_engine_says_becomes_a_verdict(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch, completion: Completion, verdict: str
) -> None:
    from dataclasses import replace

    answering(monkeypatch, lambda name: replace(completion, id=name))
    assert asyncio.run(synthesizer(batch(a={}))).column("task_verdict").to_pylist() == [verdict]


def test_an_engine_that_loses_or_doubles_a_row_stops_the_job(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, lambda name: Completion("a", [], "stop"))
    with pytest.raises(RowAccountingError, match="nobody asked for"):
        asyncio.run(synthesizer(batch(a={}, b={})))


def test_a_replica_that_fails_row_after_row_stops_the_job(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, lambda name: Completion(name, error="boom"))
    with pytest.raises(TooManyFailures, match="max_failed_share"):
        asyncio.run(synthesizer(batch(**{f"r{number}": {} for number in range(250)})))


def test_ceiling_needs_enough_rows_and_counts_only_failures() -> None:
    ceiling = FailureCeiling(0.5)
    ceiling.count(["engine_error"] * 50)
    ceiling.count(["response_unparsable"] * 1000 + [None])
    assert (ceiling.asked, ceiling.failed) == (1051, 50)


@pytest.mark.parametrize(("keep", "verdict"), [("threshold", "judged_inconsistent"), ("exact", "kept")])
def test_the_papers_rule_does_not_look_at_the_threshold(
    synthesizer: Synthesizer, judge: Judge, keep: str, verdict: str
) -> None:
    judge.settings = judge.settings.model_copy(update={"keep": keep, "threshold": 0.99})  # the fake judge says 0.9
    [row] = asyncio.run(judge(asyncio.run(synthesizer(batch(a={}))))).to_pylist()
    assert row["task_verdict"] == verdict
