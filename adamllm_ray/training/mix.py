"""The mixture: which records train in an epoch, and in which form. A plan over the data set, not a copy of it.

A record with a kept task becomes ``both`` (caption and task in one conversation), ``caption`` or ``task``, drawn by
hash of (seed, epoch, id) with the configured weights; one without is caption only, if its own draw keeps it. Replay
sources add examples from outside. Everything is drawn again each epoch, and the order of an epoch is a sort by hash,
so rows of all kinds interleave and no draw depends on files, workers or failures.

What was asked for and what came out are compared: a drift beyond the tolerance (or three standard deviations of the
draw, for small data) raises MixtureDriftError.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from adamllm_ray.config import MixtureSection
from adamllm_ray.data.draws import uniform
from adamllm_ray.errors import MixtureDriftError

DOMAIN = ""  # the source of the run's own records; replay sources have names
FORMS = ("both", "caption", "task")


class Item(NamedTuple):
    """A usable record as the plan sees it. ``tokens``: its length in each of FORMS (see `lengths`)."""

    source: str
    id: str
    tasked: bool
    tokens: tuple[int, int, int]

    def length(self, form: str) -> int:
        """Tokens of an entry of this form, image tokens included."""
        return self.tokens[FORMS.index(form) if form in FORMS else FORMS.index("caption")]


class Entry(NamedTuple):
    """One example of one epoch: ``item`` is a position in the list of items, ``form`` what is made of it.

    ``form`` is both, caption or task; 'untasked' (a caption, for want of a task); or 'replay:NAME'.
    """

    epoch: int
    item: int
    form: str
    copy: int = 0  # a replay source smaller than its share is repeated within an epoch


@dataclass(frozen=True, slots=True)
class Share:
    """Share of all examples that have one form: asked for, and realised; ``count`` examples."""

    requested: float
    realised: float
    count: int


class Mixture:
    """The plan over ``items``; `epoch` gives the entries of one."""

    def __init__(self, items: Sequence[Item], section: MixtureSection, seed: int) -> None:
        self.items, self.section, self.seed = items, section, seed
        self._replay: dict[str, list[int]] = {source.name: [] for source in section.replay}
        self._domain: list[int] = []
        for index, item in enumerate(items):
            (self._domain if item.source == DOMAIN else self._replay[item.source]).append(index)

    def epoch(self, epoch: int) -> list[Entry]:
        """All entries of an epoch, in order."""
        drawn = [Entry(epoch, index, form) for index in self._domain if (form := self._form(index, epoch))]
        entries = [*drawn, *self._replayed(epoch, len(drawn))]
        return sorted(entries, key=self._place)

    def requested(self) -> dict[str, float]:
        """Share of all examples per form, as expected from the configured weights and the kept tasks."""
        section, total = self.section, self.section.both + self.section.caption + self.section.task
        tasked = sum(self.items[index].tasked for index in self._domain)
        expected = {form: tasked * getattr(section, form) / total for form in FORMS}
        expected["untasked"] = (len(self._domain) - tasked) * section.untasked
        domain = sum(expected.values())
        for source in section.replay:
            if self._replay[source.name]:
                expected[f"replay:{source.name}"] = domain * source.weight
        everything = sum(expected.values()) or 1.0
        return {form: count / everything for form, count in expected.items() if count}

    def shares(self, entries: Iterable[Entry]) -> dict[str, Share]:
        """Requested and realised shares of some entries.

        Raises:
            MixtureDriftError: a realised share left the tolerance around the requested one.
        """
        counts = Counter(entry.form for entry in entries)
        n, requested = sum(counts.values()), self.requested()
        shares = {
            form: Share(requested.get(form, 0.0), counts[form] / n if n else 0.0, counts[form])
            for form in sorted({*requested, *counts})
        }
        for form, share in shares.items():
            allowed = max(self.section.tolerance, 3 * math.sqrt(share.requested * (1 - share.requested) / max(n, 1)))
            if abs(share.realised - share.requested) > allowed:
                raise MixtureDriftError(
                    f"mixture: {share.realised:.1%} of {n} examples are '{form}', {share.requested:.1%} were asked "
                    f"for (tolerance {allowed:.1%}). Many examples of one form were refused, or "
                    "mixture.tolerance is too narrow."
                )
        return shares

    def _form(self, index: int, epoch: int) -> str | None:
        item, section = self.items[index], self.section
        if not item.tasked:
            kept = uniform(self.seed, "untasked", epoch, item.id) < section.untasked
            return "untasked" if kept else None
        point = uniform(self.seed, "form", epoch, item.id) * (section.both + section.caption + section.task)
        if point < section.both:
            return "both"
        return "caption" if point < section.both + section.caption else "task"

    def _replayed(self, epoch: int, domain: int) -> list[Entry]:
        entries = []
        for source in self.section.replay:
            pool = sorted(
                self._replay[source.name], key=lambda i: uniform(self.seed, "replay", epoch, self.items[i].id)
            )
            for number in range(round(domain * source.weight) if pool else 0):
                copy, place = divmod(number, len(pool))
                entries.append(Entry(epoch, pool[place], f"replay:{source.name}", copy))
        return entries

    def _place(self, entry: Entry) -> tuple[float, str, int]:
        item = self.items[entry.item]
        return uniform(self.seed, "epoch", entry.epoch, item.source, item.id, entry.copy), item.id, entry.copy
