"""Several responses per image: which speaks for the row, what is stored, and that nothing depends on order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamllm_ray.data.draws import draw_seed
from adamllm_ray.synthesis.actors import Judge, Synthesizer, load_chat
from adamllm_ray.synthesis.attempts import choose, needs_retry, request_id
from adamllm_ray.synthesis.engine import Completion, Request, SamplingSpec
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, hinted
from tests.synthesis.fakes import FakeEngine, FakeMaker, config_for, task_response, turns
from tests.synthesis.test_actors import batch

ATTEMPTS = st.lists(
    st.fixed_dictionaries(
        {
            "verdict": st.sampled_from(["kept", "judged_open", "response_empty"]),
            "judge_yes": st.floats(0, 1) | st.none(),
        }
    ),
    min_size=1,
)


@given(ATTEMPTS)
def test_a_kept_attempt_wins_and_of_those_the_surest_and_earliest(attempts: list[dict[str, Any]]) -> None:
    best = choose(attempts)
    kept = [one for one in attempts if one["verdict"] == "kept"]
    pool = kept or attempts
    assert attempts[best] in pool
    surest = max(-1.0 if one["judge_yes"] is None else one["judge_yes"] for one in pool)
    assert (attempts[best]["judge_yes"] if attempts[best]["judge_yes"] is not None else -1.0) == surest
    assert not any(one == attempts[best] for one in attempts[:best])


def test_only_unreadable_responses_are_asked_again() -> None:
    assert needs_retry([{"verdict": "response_unparsable"}, {"verdict": "response_repeats"}])
    assert not needs_retry([{"verdict": "response_unparsable"}, {"verdict": None}])
    assert not needs_retry([{"verdict": "engine_error"}])
    assert not needs_retry([{"verdict": "response_unsafe"}])


def test_a_row_without_attempts_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        choose([])


class Script:
    """Answers by request id and records how each was sampled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, readable: Sequence[str], sure: dict[str, float]) -> None:
        self.specs: dict[str, SamplingSpec] = {}
        script = self

        async def generate(fake: FakeEngine, requests: Sequence[Request], spec: SamplingSpec) -> list[Completion]:
            if not fake.images:
                return [script.judge(request.id, spec, sure) for request in requests]
            script.specs |= {request.id: request.sampling or spec for request in requests}
            good = list(task_response(fake.chat)) if fake.chat else []
            return [Completion(one.id, good if one.id in readable else [300, 301], "stop") for one in requests]

        monkeypatch.setattr(FakeEngine, "generate", generate)

    @staticmethod
    def judge(name: str, spec: SamplingSpec, sure: dict[str, float]) -> Completion:
        import math

        yes, no, other = spec.allowed_token_ids or ()
        chance = sure[name]
        logs = {yes: math.log(chance), no: math.log(1 - chance), other: -99.0}
        return Completion(name, [yes], "length", logs)


def graph(folder: Path, vlm: Path, judge: Path, rows: Any, **synthesis: object) -> list[dict[str, Any]]:
    config, maker = config_for(folder, vlm, judge, **synthesis), FakeMaker(str(folder / "log"))
    writer = Synthesizer(str(vlm), config.synthesis, config.data.images, 0, maker)
    written, tasks = asyncio.run(writer(rows)), config.synthesis.tasks_per_image
    return asyncio.run(Judge(str(judge), config.judge, 1.0, maker, tasks)(written)).to_pylist()  # type: ignore[no-any-return]


def test_the_surest_kept_candidate_becomes_the_task(
    tmp_path: Path, tiny_vlm: Path, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, ["a", "a#1", "a#2", "b#1"], {"a": 0.6, "a#1": 0.9, "a#2": 0.2, "b#1": 0.1})
    one, other = graph(tmp_path, tiny_vlm, tiny_judge, batch(a={}, b={}), candidates=3, temperature=0.7)
    assert one["task_verdict"] == "kept"
    assert one["judge_yes"] == pytest.approx(0.9)
    assert [attempt["chosen"] for attempt in one["attempts"]] == [False, True, False]
    assert [attempt["verdict"] for attempt in one["attempts"]] == ["kept", "kept", "judged_inconsistent"]
    assert [attempt["seed"] for attempt in one["attempts"]] == [draw_seed(0, "attempt", "a", n) for n in range(3)]
    assert other["task_verdict"] == "judged_inconsistent"  # the only one that could be read
    assert [attempt["verdict"] for attempt in other["attempts"]] == [
        "response_unparsable",
        "judged_inconsistent",
        "response_unparsable",
    ]
    assert {spec.temperature for spec in script.specs.values()} == {0.7}


def test_what_cannot_be_read_is_asked_once_more_and_warmer(
    tmp_path: Path, tiny_vlm: Path, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, ["a", "b#1"], {"a": 0.8, "b#1": 0.8})
    rows = graph(
        tmp_path, tiny_vlm, tiny_judge, batch(a={}, b={}, c={}, d={"verdict": "duplicate"}), retry_temperature=0.9
    )
    assert [row["task_verdict"] for row in rows] == ["kept", "kept", "response_unparsable", "not_synthesized"]
    assert sorted(script.specs) == ["a", "b", "b#1", "c", "c#1"]
    assert script.specs["b#1"].temperature == 0.9
    assert [len(row["attempts"] or []) for row in rows] == [1, 2, 2, 0]
    assert rows[2]["response_ids"] == [300, 301]
    assert rows[3]["attempts"] is None


def test_one_response_per_row_stores_no_attempts(
    tmp_path: Path, tiny_vlm: Path, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Script(monkeypatch, ["a"], {"a": 0.8})
    rows = graph(tmp_path, tiny_vlm, tiny_judge, batch(a={}, b={}))
    assert [row["attempts"] for row in rows] == [None, None]
    assert [row["task_verdict"] for row in rows] == ["kept", "response_unparsable"]


def test_several_tasks_of_one_response_are_judged_and_the_kept_ones_stay(
    tmp_path: Path, tiny_vlm: Path, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four questions under both hints, three wanted, one of those inconsistent; the surest speaks for the row."""
    Script(monkeypatch, ["a"], {"a": 0.6, "a#1": 0.2, "a#2": 0.9})
    pairs = [(hinted(hint, f"Q{n}?"), f"{n} {hint}") for n in range(4) for hint in (HINT_PRECISE, HINT_INFORMATIVE)]
    chat = load_chat(str(tiny_vlm))
    monkeypatch.setattr("tests.synthesis.test_attempts.task_response", lambda _: (*turns(chat, *pairs), chat.eos_id))
    one, other = graph(tmp_path, tiny_vlm, tiny_judge, batch(a={}, b={}), tasks_per_image=3)
    assert (one["instruction"], one["segments"], one["pairs"], one["triplets"]) == ("Q2?", 8, 8, 4)
    assert one["further"] == [
        {"instruction": "Q0?", "informative": f"0 {HINT_INFORMATIVE}", "precise": f"0 {HINT_PRECISE}"}
    ]
    assert [attempt["verdict"] for attempt in one["attempts"]] == ["kept", "judged_inconsistent", "kept"]
    assert (other["task_verdict"], other["further"], other["triplets"]) == ("response_unparsable", [], 0)
    assert other["task_detail"] == "1 turns, none of them a question with a finished answer"


def test_the_batch_a_row_is_in_does_not_matter(
    tmp_path: Path, tiny_vlm: Path, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, [], {})
    graph(tmp_path, tiny_vlm, tiny_judge, batch(a={}, b={}), candidates=2, temperature=0.5)
    together = dict(script.specs)
    script.specs.clear()
    graph(tmp_path, tiny_vlm, tiny_judge, batch(b={}), candidates=2, temperature=0.5)
    assert script.specs == {name: together[name] for name in ("b", "b#1")}


def test_a_url_that_the_caption_does_not_have_is_refused(
    tmp_path: Path, tiny_vlm: Path, tiny_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamllm_ray.synthesis import actors

    Script(monkeypatch, ["a"], {"a": 0.8})
    monkeypatch.setattr(actors, "foreign_url", lambda triplet, caption: f"http://x/{triplet.precise}/{caption}")
    [row] = graph(tmp_path, tiny_vlm, tiny_judge, batch(a={}))
    assert row["task_verdict"] == "response_unsafe"
    assert row["task_detail"] == "not in the caption: http://x/a circle/a circle"
    assert row["instruction"] is None
    assert row["response"]


def test_names_of_attempts() -> None:
    assert [request_id("x", number) for number in (0, 1)] == ["x", "x#1"]
