"""A row that kills its replica: it is found within three tries and gets a verdict, and no other row suffers for it.

::

    replica ── begin(rows of a batch) ──►  DeathRecord, one for a run  ──► in how many deaths each of them was in flight
            ── open(rows), close(rows) ─►  (an actor beside the driver)

A replica says which rows it is about to ask its engine for, and afterwards that they are answered. Nobody watches
deaths: a row that comes again from another life of a replica, and was never taken back by the one before, was in flight
when that one died. What was in flight in one death is asked again in small company, what was in two alone, with
nothing else at the engine; what was alone in a death is its cause, and is not asked again (Verdict.ENGINE_DIED).

Without a record (evaluation, unit tests, or one that died itself) replicas work the same and nothing is found.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from adamllm_ray.errors import ReplicasLost, TooManyFailures

if TYPE_CHECKING:
    from adamllm_ray.config import EngineSection

T = TypeVar("T")
log = logging.getLogger(__name__)

ALONE = 2  # a row that was in flight in so many deaths is asked alone
FOUND = 3  # and one more, alone, is proof; so this is also the most often that such a row is asked
COMPANY = 8  # this part of the engine's slots may be taken by rows that were in flight in one death
ENOUGH_ROWS = 200  # before this many, a share of failures says little
PATIENCE_S = 60.0  # for the record to answer; it starts while the replicas load their models
DETAIL = "its replica died each time it was asked, at last with nothing else at the engine"


@dataclass(frozen=True)
class Begun:
    """What the record knows of a batch, and of the run.

    Attributes:
        deaths: in how many each row was in flight; those in none are left out.
        unexplained: deaths under this batch, but those by a row that was found and those of suspects among themselves.
        found: rows of the run that killed their replicas.
        answered: rows of the run that came through.
    """

    deaths: dict[str, int]
    unexplained: int
    found: int
    answered: int


class DeathRecord:
    """Who was in flight when a replica died. ``life`` is one process of a replica: a restarted one is another."""

    def __init__(self) -> None:
        self._open: dict[str, str] = {}  # row -> the life that asks for it
        self._apart: set[str] = set()  # lives at whose engine are only rows that were in flight in a death
        self._alone: dict[str, str] = {}  # life -> the row that it asks for with nothing else at its engine
        self._deaths: dict[str, list[str]] = {}  # row -> the lives that ended with it in flight
        self._found: set[str] = set()
        self._explained: set[str] = set()  # lives that ended by a row that was found
        self._lives: defaultdict[str, set[str]] = defaultdict(set)  # batch -> lives that have begun it
        self._answered = 0

    def begin(self, life: str, rows: Sequence[str], answered: Sequence[str]) -> Begun:
        """A batch comes to a replica. Of its rows, those that another life never took back were in a death more."""
        self._close(life, answered)
        for row in rows:
            last = self._open.get(row, life)
            if last != life:
                del self._open[row]
                self._died(row, last)
        lives = self._lives[rows[0]]
        lives.add(life)
        ended = lives - {life} - self._explained - self._apart
        deaths = {row: FOUND if row in self._found else len(self._deaths.get(row, [])) for row in rows}
        known = {row: count for row, count in deaths.items() if count}
        return Begun(known, len(ended), len(self._found), self._answered)

    def open(self, life: str, rows: Sequence[str], apart: bool, alone: bool, answered: Sequence[str]) -> None:
        """These rows are asked now; ``apart``: and no others."""
        self._close(life, answered)
        self._open |= dict.fromkeys(rows, life)
        (self._apart.add if apart else self._apart.discard)(life)
        if alone:
            [self._alone[life]] = rows

    def end(self, life: str, batch: str, answered: Sequence[str]) -> None:
        """A batch is done."""
        self._close(life, answered)
        self._lives.pop(batch, None)

    def _died(self, row: str, life: str) -> None:
        lives = self._deaths.setdefault(row, [])
        lives.append(life)
        if self._alone.get(life) == row:
            self._found.add(row)
            self._explained.update(lives)  # also those in which it had company

    def _close(self, life: str, answered: Sequence[str]) -> None:
        self._answered += len(answered)
        for row in answered:
            if self._open.get(row) == life:
                del self._open[row]
                self._deaths.pop(row, None)
            if self._alone.get(life) == row:
                del self._alone[life]


@contextmanager
def death_record() -> Iterator[Any]:
    """A `DeathRecord` as an actor on this node, for the length of the block.

    Not restarted: what could be restarted is killed first when memory runs out, and it would come back without memory.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    record = ray.remote(DeathRecord).options(num_cpus=0, max_restarts=0, scheduling_strategy=here).remote()
    try:
        yield record
    finally:
        ray.kill(record)


@dataclass
class Attendance:
    """One life of a replica, as it tells the record of its rows, and who may be at its engine at the same time."""

    role: str  # the same row comes to both pools
    settings: EngineSection
    max_failed_share: float
    turns: Turns
    record: Any = None
    life: str = field(default_factory=lambda: uuid.uuid4().hex)
    answered: list[str] = field(default_factory=list)  # and not told yet: they go with the next message

    async def begin(self, rows: Sequence[str]) -> dict[str, int]:
        """In how many deaths each of these rows of a batch was in flight; those in none are left out.

        Raises:
            TooManyFailures: the engine dies of too many rows, so it is not the rows.
            ReplicasLost: replicas died under this batch again and again, and no row is the cause.
        """
        if not rows:
            return {}
        found: Begun | None = await self._tell("begin", self._names(rows))
        if found is None:
            return {}
        if found.found > self.max_failed_share * max(ENOUGH_ROWS, found.answered + found.found):
            raise TooManyFailures(
                f"synthesis: {found.found} rows killed their replicas and {found.answered} were answered, the limit is "
                f"{self.max_failed_share:.1%} (synthesis.max_failed_share). Ray's logs say how the replicas died"
            )
        if found.unexplained > self.settings.max_retries:
            raise ReplicasLost(
                f"synthesis: {found.unexplained} replicas died under the same batch (engine.max_retries is "
                f"{self.settings.max_retries}), and no row was found to be the cause. Ray's logs say how they died. "
                "What is finished is kept: with the cause removed, run the same command again."
            )
        return {row: found.deaths[name] for row in rows if (name := self._name(row)) in found.deaths}

    async def open(self, rows: Sequence[str], *, apart: bool = False, alone: bool = False) -> None:
        """Say that these rows are asked now: before it, as nobody can afterwards."""
        if rows:
            await self._tell("open", self._names(rows), apart, alone)

    def close(self, rows: Iterable[str]) -> None:
        """Take rows back that are answered, with the next message."""
        if self.record is not None:
            self.answered += self._names(rows)

    async def end(self, rows: Sequence[str]) -> None:
        """The batch that began with these rows is done."""
        if rows:
            await self._tell("end", self._name(rows[0]))

    async def apart(self, deaths: Mapping[str, int], ask: Callable[[list[str]], Awaitable[T]]) -> list[T]:
        """Ask for rows that were in flight in deaths, a few at a time and nothing beside them."""
        plan = rounds(deaths, max(2, self.settings.slots // COMPANY))
        results: list[T] = []
        if plan:
            async with self.turns.all():
                for rows, alone in plan:
                    await self.open(rows, apart=True, alone=alone)
                    results.append(await ask(rows))
                    self.close(rows)
                    if alone:  # at once: were it to die now, the row would be blamed
                        await self._tell("open", [], True, False)
        return results

    async def _tell(self, what: str, *arguments: Any) -> Any:
        """None where there is no record, or none any more: a row that kills is not found then, and that is all."""
        if self.record is None:
            return None
        from ray.exceptions import RayError

        answered, self.answered = self.answered, []
        try:
            call = getattr(self.record, what).remote(self.life, *arguments, answered)
            return await asyncio.wait_for(call, PATIENCE_S)
        except (RayError, TimeoutError) as error:
            log.warning("no record of deaths (%s): a row that kills its replica is not found", type(error).__name__)
            self.record = None
            return None

    def _name(self, row: str) -> str:
        return f"{self.role} {row}"

    def _names(self, rows: Iterable[str]) -> list[str]:
        return [self._name(row) for row in rows]


def rounds(deaths: Mapping[str, int], size: int) -> list[tuple[list[str], bool]]:
    """Who is asked together, and whether that is one row alone: what was in flight in two deaths comes first.

    Those that were found are not among them.
    """
    alone = [row for row, count in deaths.items() if ALONE <= count < FOUND]
    few = [row for row, count in deaths.items() if count < ALONE]
    return [([row], True) for row in alone] + [(few[at : at + size], False) for at in range(0, len(few), size)]


def found_in(deaths: Mapping[str, int]) -> Collection[str]:
    """The rows that killed their replicas."""
    return [row for row, count in deaths.items() if count >= FOUND]


class Turns:
    """A semaphore of which somebody can have all turns. First come, first served; ``all`` ones one after the other."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = asyncio.Semaphore(total)
        self._entry = asyncio.Lock()  # or two who want several would wait for each other's
        self._session = asyncio.Lock()
        self._sessions = 0  # that run or wait

    async def take(self, number: int) -> None:
        """Wait for so many turns."""
        async with self._entry:
            for _ in range(number):
                await self._free.acquire()

    def give(self, number: int = 1) -> None:
        """They are over."""
        for _ in range(number):
            self._free.release()

    @asynccontextmanager
    async def all(self) -> AsyncIterator[None]:
        """Nobody else has a turn. Handed on to who waits for the same, so that a replica is emptied once for all."""
        self._sessions += 1
        first = self._sessions == 1
        async with self._session:
            if first:
                await self.take(self.total)
            try:
                yield
            finally:
                self._sessions -= 1
                if not self._sessions:
                    self.give(self.total)
