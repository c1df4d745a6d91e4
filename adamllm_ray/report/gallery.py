"""Which records the report shows: half of them drawn by hash, a quarter the judge's best, a quarter its worst.

The drawn half is neither the best nor the first: rejected and failed records have their places in it. Rows stream by
and only the candidates are held; images are read from the files that hold a chosen record, and from no others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from adamllm_ray.data.draws import uniforms
from adamllm_ray.data.run import StageFolder
from adamllm_ray.data.verdicts import Outcome, Verdict

SHARES: dict[Outcome, float] = {"kept": 14 / 24, "rejected": 7 / 24, "failed": 3 / 24}  # of the drawn ones
COLUMNS = ["id", "image", "caption", "verdict", "verdict_detail"]
TASK_COLUMNS = ["instruction", "informative", "precise", "judge_yes", "judge_no", "judge_open", "response"]
_ESCAPED = {"&": 5, "<": 4, ">": 4, '"': 5, "'": 5}  # bytes that a character takes in the page

Picture = Callable[[str, bytes | None], str | None]  # (record id, encoded image) -> address


@dataclass(frozen=True, slots=True)
class Card:
    """One record as shown. Texts are raw: the template escapes them.

    Attributes:
        groups: why it is here: drawn, best, worst.
    """

    id: str
    image: str | None  # data URI, or an address that expires
    caption: str
    verdict: str
    outcome: Outcome
    detail: str
    groups: tuple[str, ...] = ("drawn",)
    instruction: str = ""
    informative: str = ""
    precise: str = ""
    response: str = ""  # only where no task could be read from it
    judge: tuple[float, float, float] | None = None  # P(Yes), P(No), P(Open)


def gallery(stage: StageFolder, seed: int, count: int, picture: Picture, text_bytes: int) -> list[Card]:
    """Cards of records in ``stage`` (synthesize, or ingest when synthesis has not run).

    Args:
        stage: whose rows.
        seed: of the draw.
        count: cards, if there are so many rows.
        picture: makes what a card shows of an image.
        text_bytes: that a text may take in the page.
    """
    data = pads.dataset(stage.parquet_files(), filesystem=stage.fs, format="parquet")
    tasks = "task_verdict" in data.schema.names
    parts = list(data.get_fragments())
    groups = _Candidates(count).read(parts, tasks, seed).choose()
    columns = [*COLUMNS, *([*TASK_COLUMNS, "task_verdict", "task_detail"] if tasks else [])]
    cards: dict[str, Card] = {}
    for number in sorted({found.part for found in groups}):
        here = pa.array([found.id for found in groups if found.part == number], pa.string())
        for batch in parts[number].to_batches(columns=columns, filter=pads.field("id").isin(here), batch_size=256):
            for row in batch.to_pylist():
                cards[row["id"]] = _card(row, picture, text_bytes)
    return [replace(cards[found.id], groups=names) for found, names in groups.items()]


@dataclass(frozen=True, slots=True)
class _Found:
    """A candidate: where it is."""

    id: str
    part: int


class _Smallest:
    """The ``count`` candidates with the smallest keys, of all that came by."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, float, str, int]] = []  # keys negated: the largest is on top

    def offer(self, key: float, draw: float, id: str, part: int) -> None:
        entry = (-key, -draw, id, part)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        elif self._count and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def sorted(self) -> list[_Found]:
        return [_Found(id, part) for _, _, id, part in sorted(self._heap, key=lambda e: (-e[0], -e[1], e[2]))]


class _Candidates:
    def __init__(self, count: int) -> None:
        self.count = count
        self.drawn: dict[Outcome, _Smallest] = {outcome: _Smallest(count) for outcome in SHARES}
        self.best, self.worst = _Smallest(count // 4), _Smallest(count // 4)

    def read(self, parts: Iterable[Any], tasks: bool, seed: int) -> _Candidates:
        columns = ["id", "verdict", *(["task_verdict", "judge_yes"] if tasks else [])]
        for number, part in enumerate(parts):
            for batch in part.to_batches(columns=columns):
                draws = uniforms(batch["id"], seed, "gallery").tolist()
                for row, draw in zip(batch.to_pylist(), draws, strict=True):
                    self._offer(row, draw, number)
        return self

    def _offer(self, row: Mapping[str, Any], draw: float, part: int) -> None:
        self.drawn[final_verdict(row).outcome].offer(draw, 0.0, row["id"], part)
        yes = row.get("judge_yes")
        if yes is not None:
            self.best.offer(-yes, draw, row["id"], part)
            self.worst.offer(yes, draw, row["id"], part)

    def choose(self) -> dict[_Found, tuple[str, ...]]:
        """Chosen ones and their groups: drawn ones by outcome, then best, then worst."""
        best, worst = self.best.sorted(), self.worst.sorted()
        pools = {outcome: pool.sorted() for outcome, pool in self.drawn.items()}
        groups: dict[_Found, tuple[str, ...]] = {}
        extremes, most = {*best, *worst}, min(self.count, sum(map(len, pools.values())))
        drawn = _by_quota(pools, self.count - len(extremes))
        while (missing := most - len({*drawn, *extremes})) > 0:  # as many as are in both
            drawn = _by_quota(pools, len(drawn) + missing)
        for name, members in (("drawn", drawn), ("best", best), ("worst", worst)):
            for found in members:
                groups[found] = (*groups.get(found, ()), name)
        return groups


def _by_quota(pools: Mapping[Outcome, list[_Found]], count: int) -> list[_Found]:
    """By outcome, each group in hash order; places that a group cannot fill go to the others."""
    chosen = {outcome: pool[: int(SHARES[outcome] * count)] for outcome, pool in pools.items()}
    free = count - sum(map(len, chosen.values()))
    for outcome, members in chosen.items():
        more = pools[outcome][len(members) : len(members) + max(0, free)]
        free -= len(more)
        members += more
    return [found for members in chosen.values() for found in members]


def final_verdict(row: Mapping[str, Any]) -> Verdict:
    """The task's verdict; the pair's own where no model was asked."""
    task = row.get("task_verdict")
    return Verdict(row["verdict"] if task in (None, Verdict.NOT_SYNTHESIZED) else task)


def _card(row: dict[str, Any], picture: Picture, text_bytes: int) -> Card:
    verdict = final_verdict(row)
    judge = (row.get("judge_yes"), row.get("judge_no"), row.get("judge_open"))
    question, informative, precise = (
        clip(row.get(name) or "", text_bytes) for name in ("instruction", "informative", "precise")
    )
    return Card(
        id=row["id"],
        image=picture(row["id"], row["image"]),
        caption=clip(row["caption"], text_bytes),
        verdict=str(verdict),
        outcome=verdict.outcome,
        detail=clip(row.get("task_detail") or row.get("verdict_detail") or "", text_bytes),
        instruction=question,
        informative=informative,
        precise=precise,
        response="" if question else clip(row.get("response") or "", text_bytes),
        judge=None if None in judge else tuple(map(float, judge)),  # type: ignore[arg-type]
    )


def clip(text: str, limit: int) -> str:
    """At most ``limit`` bytes of the page; characters that cannot be written as UTF-8 are replaced."""
    clean = text[: limit + 1].encode("utf-8", "replace").decode("utf-8")
    room = limit
    for index, character in enumerate(clean):
        room -= _ESCAPED.get(character) or len(character.encode())
        if room < 0:
            return clean[:index].rstrip() + " \N{HORIZONTAL ELLIPSIS}"
    return clean
