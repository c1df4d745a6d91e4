"""A row that kills its replica, in units: the counting, who is asked beside whom, and what is done without a record.

Below them the same with a real Ray and real deaths by SIGKILL; those by Ray's guard of memory: faults/test_memory.py.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import EngineSection
from adamllm_ray.errors import ReplicasLost, TooManyFailures
from adamllm_ray.synthesis.actors import Judge, Synthesizer
from adamllm_ray.synthesis.engine import Completion, Request, SamplingSpec
from adamllm_ray.synthesis.pipeline import synthesize
from adamllm_ray.synthesis.poison import Attendance, Begun, DeathRecord, Turns, rounds
from adamllm_ray.synthesis.redrive import redrive
from tests.synthesis.deaths import BLOCK, Job, quick_ray
from tests.synthesis.fakes import FakeEngine, FakeMaker, config_for, number_of, requests_in
from tests.synthesis.test_actors import batch


def deaths_of(record: DeathRecord, life: str, *rows: str) -> dict[str, int]:
    return record.begin(life, rows, []).deaths


def test_what_was_taken_back_was_in_no_death() -> None:
    record = DeathRecord()
    assert deaths_of(record, "one", "a", "b", "c") == {}
    record.open("one", ["a", "b"], False, False, [])
    assert deaths_of(record, "one", "a", "b", "c") == {}  # the same batch sent once more to the same process
    record.open("one", ["c"], False, False, ["a"])
    assert deaths_of(record, "two", "a", "b", "c") == {"b": 1, "c": 1}
    assert deaths_of(record, "two", "a", "b", "c") == {"b": 1, "c": 1}  # counted once
    record.open("two", ["b", "c"], False, False, [])
    assert deaths_of(record, "three", "a", "b", "c") == {"b": 2, "c": 2}
    record.open("three", ["b"], True, True, [])
    record.open("three", ["c"], True, True, ["b"])  # b was alone and survived
    assert deaths_of(record, "four", "a", "b", "c") == {"c": 3}
    assert deaths_of(record, "five", "a", "b", "c") == {"c": 3}  # for ever


def test_only_what_was_alone_is_found() -> None:
    record = DeathRecord()
    for life in range(5):
        assert deaths_of(record, str(life), "a") == ({"a": life} if life else {})
        record.open(str(life), ["a", "b"], False, False, [])
    assert record.begin("6", ["b"], []).found == 0


def test_deaths_by_a_row_that_was_found_are_not_held_against_other_batches() -> None:
    record = DeathRecord()
    for life in range(3):
        assert record.begin(str(life), ["b"], []).unexplained == life
        record.begin(str(life), ["a"], [])
        record.open(str(life), ["a"], life == 2, life == 2, [])
    assert record.begin("3", ["b"], []).unexplained == 2  # the last one is known already, as the row was alone in it
    assert record.begin("3", ["a"], []) == Begun({"a": 3}, 0, 1, 0)
    assert record.begin("3", ["b"], []).unexplained == 0  # and so was the cause of the others
    record.begin("4", ["b"], [])
    assert record.begin("5", ["b"], []).unexplained == 2
    record.end("5", "b", ["x"])
    assert record.begin("6", ["b"], []) == Begun({}, 0, 1, 1)


def test_who_is_asked_with_whom() -> None:
    deaths = {"a": 1, "b": 2, "c": 3, "d": 1, "e": 1, "f": 2}
    assert rounds(deaths, 2) == [(["b"], True), (["f"], True), (["a", "d"], False), (["e"], False)]
    assert rounds({"c": 3}, 2) == []


def test_nobody_is_beside_who_has_all_turns() -> None:
    async def main() -> list[str]:
        turns, seen = Turns(3), list[str]()
        inside: list[str] = []

        async def some(name: str, number: int) -> None:
            await turns.take(number)
            assert "all" not in inside
            inside.append(name)
            await asyncio.sleep(0.001)
            inside.remove(name)
            seen.append(name)
            turns.give(number)

        async def everything(name: str) -> None:
            async with turns.all():
                assert inside == []
                inside.append("all")
                await asyncio.sleep(0.001)
                inside.remove("all")
                seen.append(name)

        await asyncio.gather(some("a", 2), everything("A"), some("b", 1), everything("B"), some("c", 3))
        await turns.take(3)  # all came back
        return seen

    assert asyncio.run(main()) == ["a", "A", "B", "b", "c"]  # the second session follows at once on the first


class Here:
    """A record in this process, called as an actor is."""

    def __init__(self) -> None:
        self.record = DeathRecord()
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        async def remote(*arguments: Any) -> Any:
            self.calls[name] += 1
            return getattr(self.record, name)(*arguments)

        return type("Method", (), {"remote": staticmethod(remote)})


def attendance(record: Any, **settings: Any) -> Attendance:
    return Attendance("judge", EngineSection(**settings), 0.01, Turns(1), record)


def test_deaths_without_a_cause_end_the_job_after_max_retries() -> None:
    record = Here()
    for _ in range(3):
        asyncio.run(attendance(record, max_retries=2).begin(["a"]))
    with pytest.raises(ReplicasLost, match=r"3 replicas died .*engine\.max_retries is 2"):
        asyncio.run(attendance(record, max_retries=2).begin(["a"]))


def test_an_engine_that_no_row_survives_ends_the_job() -> None:
    record = Here()
    for number in range(3):
        dead = attendance(record)
        asyncio.run(dead.begin([str(number)]))
        asyncio.run(dead.open([str(number)], apart=True, alone=True))
        if number < 2:  # 1 % of 200 rows may be found
            assert asyncio.run(attendance(record).begin([str(number)])) == {str(number): 3}
    with pytest.raises(TooManyFailures, match="3 rows killed"):
        asyncio.run(attendance(record).begin(["2"]))


@pytest.mark.parametrize("record", [None, "gone", "silent"])
def test_without_a_record_rows_are_asked_all_the_same(record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ActorDiedError

    async def answer(*_: Any) -> Any:
        if record == "gone":
            raise ActorDiedError
        await asyncio.sleep(60)

    monkeypatch.setattr("adamllm_ray.synthesis.poison.PATIENCE_S", 0.01)
    remote = type("Method", (), {"remote": staticmethod(answer)})
    one = attendance(record and type("Record", (), {"begin": remote, "open": remote, "end": remote}))

    async def main() -> None:
        assert await one.begin(["a"]) == {}
        await one.open(["a"])
        one.close(["a"])
        await one.end(["a"])

    asyncio.run(main())
    assert one.record is None


STOPPED = "Event loop stopped before Future completed"  # what asyncio.run says of it


async def _die() -> None:
    """Stands for the end of a process: the loop ends, and whoever waits or asked is never heard of again.

    An exception would not do: it lets the others go on, and take back rows that nobody answered.
    """
    asyncio.get_running_loop().stop()
    await asyncio.Event().wait()


class Deadly:
    """Engines that die of some rows, and now and then of nothing; it sees who is at an engine together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kills: Sequence[str], by_chance: float = 0.0) -> None:
        self.asked: Counter[str] = Counter()
        self.innocent_alone = 0  # deaths by chance with one row at the engine: nobody could tell
        chance = random.Random(1)
        at_engine: list[str] = []
        dead: list[FakeEngine] = []
        answer = FakeEngine.generate
        deadly = self

        async def generate(fake: FakeEngine, requests: Sequence[Request], spec: SamplingSpec) -> list[Completion]:
            ids = [request.id for request in requests]
            if fake in dead:  # the loop's last round
                await _die()
            deadly.asked.update(ids)
            at_engine.extend(ids)
            await asyncio.sleep(0)
            if fake in dead:
                await _die()
            unlucky = chance.random() < by_chance
            if unlucky or set(ids) & set(kills):
                deadly.innocent_alone += len(at_engine) == 1 and at_engine[0] not in kills
                at_engine.clear()
                dead.append(fake)
                await _die()
            completions = await answer(fake, requests, spec)
            if fake in dead:
                await _die()
            for name in ids:
                at_engine.remove(name)
            return completions

        monkeypatch.setattr(FakeEngine, "generate", generate)


def lives(make: Callable[[], Any], rows: pa.Table) -> tuple[pa.Table, int]:
    """The batch at one life after the other, until one survives it; and how many died."""
    died = 0
    while True:
        try:
            return asyncio.run(make()(rows)), died
        except RuntimeError as error:
            if STOPPED not in str(error):
                raise
            died += 1


@pytest.fixture
def make(tmp_path: Path, tiny_vlm: Path, tiny_judge: Path) -> Callable[..., Any]:
    """Makes a new life of a synthesizer, or of a judge."""

    def made(record: Any, judge: bool = False, **synthesis: Any) -> Any:
        engine = {"max_retries": 1000}
        config = config_for(tmp_path, tiny_vlm, tiny_judge, engine, max_failed_share=1.0, **synthesis)
        maker = FakeMaker(str(tmp_path / "log"))
        if judge:
            return Judge(str(tiny_judge), config.judge, 1.0, maker, record=record)
        return Synthesizer(str(tiny_vlm), config.synthesis, config.data.images, 0, maker, record)

    return made


@pytest.mark.parametrize("settings", [{}, {"candidates": 2, "temperature": 0.7}])
def test_rows_that_kill_a_synthesizer(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    rows = batch(**{f"r{number}": {"verdict": "duplicate"} if number == 3 else {} for number in range(40)})
    calm = asyncio.run(make(None, **settings)(rows)).to_pylist()
    record, deadly = Here(), Deadly(monkeypatch, ["r7", "r9"])  # of one part: both are asked before the first death
    table, died = lives(lambda: make(record, **settings), rows)
    disturbed = table.to_pylist()
    assert died == 1 + 2 + 2  # together in company, then one after the other in small company and alone
    assert {name: deadly.asked[name] for name in ("r7", "r9")} == {"r7": 3, "r9": 3}
    for index in (7, 9):
        assert disturbed[index]["task_verdict"] == "engine_died"
        assert disturbed[index]["attempts"] is None
    assert [row for row in disturbed if row["id"] not in ("r7", "r9")] == [
        row for row in calm if row["id"] not in ("r7", "r9")
    ]


def test_rows_that_kill_a_judge(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = asyncio.run(make(None)(batch(**{f"r{number}": {} for number in range(9)})))
    record, deadly = Here(), Deadly(monkeypatch, ["r4"])
    table, died = lives(lambda: make(record, judge=True), rows)
    assert died == deadly.asked["r4"] == 3
    assert Counter(table["task_verdict"].to_pylist()) == {"kept": 8, "engine_died": 1}
    assert table["task_detail"][4].as_py().startswith("judge: its replica died")
    assert table["response"][4].as_py()  # what the synthesizer wrote stays


@pytest.mark.parametrize("by_chance", [0.0, 0.005, 0.02])
def test_chance_finds_nobody_who_was_not_alone(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, by_chance: float
) -> None:
    rows = batch(**{f"r{number}": {} for number in range(60)})
    record, deadly = Here(), Deadly(monkeypatch, ["r30"], by_chance)
    table, _ = lives(lambda: make(record), rows)
    found = [row["id"] for row in table.to_pylist() if row["task_verdict"] == "engine_died"]
    assert "r30" in found
    assert len(found) <= 1 + deadly.innocent_alone
    assert deadly.asked["r30"] <= 3


def test_the_record_costs_few_messages(make: Callable[..., Any]) -> None:
    record = Here()
    asyncio.run(make(record)(batch(**{f"r{number}": {} for number in range(64)})))
    assert record.calls == {"begin": 1, "open": 4, "end": 1}  # parts of 16: an engine of so many slots


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray that is not afraid for the machine's memory: what its neighbours take must not kill replicas here."""
    with quick_ray(RAY_memory_monitor_refresh_ms="0"):
        yield


@pytest.fixture
def job(local_ray: None, tmp_path: Path, tiny_vlm: Path, tiny_judge: Path) -> Callable[[int], Job]:
    return lambda rows: Job(tmp_path, tiny_vlm, tiny_judge, rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rows_that_kill_their_replicas_fail_and_no_others(job: Callable[[int], Job]) -> None:
    """SIGKILL, as the kernel's when memory is out, at two rows of one block and at one in another before the judge."""
    work = job(70)
    [file] = work.run.stage("ingest").parquet_files()
    ids = pq.read_table(file)["id"].to_pylist()  # in the order in which they are cut into blocks
    deadly, for_judge = (ids[BLOCK], ids[BLOCK + 2]), ids[7 * BLOCK]
    maker = replace(work.maker, deadly=deadly, deadly_to_judge=(for_judge,))
    manifest = synthesize(work.config, work.run, engine_maker=maker)
    assert manifest.verdicts == {"kept": 67, "engine_died": 3}
    tasks = work.kept()
    assert tasks == {row: f"circle {number_of(row)}" for row in work.ids if row not in (*deadly, for_judge)}
    asked = {role: Counter(row for _, row, _ in requests_in(maker.log, role)) for role in ("synthesizer", "judge")}
    assert [asked["synthesizer"][row] for row in deadly] + [asked["judge"][for_judge]] == [3, 3, 3]
    assert deadly[0] not in asked["judge"]
    again = redrive(work.config, work.run, ["engine_died"], engine_maker=work.maker)  # the cause removed
    assert (again.before, again.after) == ({"engine_died": 3}, {"kept": 3})
    assert work.kept() == {row: f"circle {number_of(row)}" for row in work.ids}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_engine_that_survives_no_row_ends_the_job(job: Callable[[int], Job]) -> None:
    """No endless loop of restarts, and not a verdict for each row: a clear stop that can be resumed."""
    work = job(30)
    synthesis = work.config.synthesis.model_copy(update={"max_failed_share": 0.001})
    config = work.config.model_copy(update={"synthesis": synthesis})
    with pytest.raises((TooManyFailures, ReplicasLost), match=r"killed their replicas|under the same batch") as caught:
        synthesize(config, work.run, engine_maker=replace(work.maker, deadly=tuple(work.ids)))
    assert caught.value.exit_code == 75
    assert work.stage.manifest() is None
    work.go()
