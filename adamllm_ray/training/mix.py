"""The mixture: which records train in an epoch, and in which form. A plan over the data set, not a copy of it.

A record with a kept task becomes ``both`` (caption and task in one conversation), ``caption`` or ``task``, drawn by
hash of (seed, epoch, id) with the configured weights; one without is caption only, if its own draw keeps it. Replay
sources add examples from outside. Everything is drawn again each epoch, and the order of an epoch is a sort by hash,
so rows of all kinds interleave and no draw depends on files, workers or failures.

Records and entries are kept as columns: 13 bytes per entry, where a Python object would take two hundred.

What was asked for and what came out are compared: a drift beyond the tolerance (or three standard deviations of the
draw, for small data) raises MixtureDriftError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adamllm_ray.config import MixtureSection
from adamllm_ray.data.draws import uniforms
from adamllm_ray.errors import MixtureDriftError

DOMAIN = ""  # the source of the run's own records; replay sources have names
FORMS = ("both", "caption", "task")


class Item(NamedTuple):
    """A usable record as the plan sees it. ``tokens``: its length in each of FORMS (see `lengths`)."""

    source: str
    id: str
    tasked: bool
    tokens: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Items:
    """Usable records as columns of one length.

    Attributes:
        names: of the sources.
        source: position in ``names`` of each record's source.
        ids: a pyarrow array of strings.
        tasked: whether the record has a kept task.
        tokens: [records, 3], lengths in FORMS.
    """

    names: list[str]
    source: NDArray[np.int32]
    ids: Any
    tasked: NDArray[np.bool_]
    tokens: NDArray[np.int32]

    @classmethod
    def of(cls, items: Sequence[Item]) -> Items:
        """Columns of some records."""
        names = sorted({item.source for item in items})
        return cls(
            names,
            np.array([names.index(item.source) for item in items], np.int32),
            pa.array([item.id for item in items], pa.large_string()),
            np.array([item.tasked for item in items], np.bool_),
            np.array([item.tokens for item in items], np.int32).reshape(-1, 3),
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        both, caption, task = self.tokens[index].tolist()
        return Item(self.names[self.source[index]], self.id(index), bool(self.tasked[index]), (both, caption, task))

    def id(self, index: int) -> str:
        """Id of a record."""
        name: str = self.ids[index].as_py()
        return name

    def length(self, index: int, form: str) -> int:
        """Tokens of an entry of this form, image tokens included."""
        return int(self.tokens[index, FORMS.index(form) if form in FORMS else FORMS.index("caption")])

    def of_source(self, name: str) -> NDArray[np.intp]:
        """Positions of the records of one source."""
        if name not in self.names:
            return np.empty(0, np.intp)
        return np.flatnonzero(self.source == self.names.index(name))


class Entry(NamedTuple):
    """One example of one epoch: ``item`` is a position in the list of items, ``form`` what is made of it.

    ``form`` is both, caption or task; 'untasked' (a caption, for want of a task); or 'replay:NAME'.
    """

    epoch: int
    item: int
    form: str
    copy: int = 0  # a replay source smaller than its share is repeated within an epoch


@dataclass(frozen=True, slots=True)
class Entries:
    """A sequence of `Entry` as columns. ``form`` holds positions in ``forms``."""

    forms: tuple[str, ...]
    epoch: NDArray[np.int32]
    item: NDArray[np.int32]
    form: NDArray[np.int8]
    copy: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.item)

    def __iter__(self) -> Iterator[Entry]:
        columns = (self.epoch.tolist(), self.item.tolist(), self.form.tolist(), self.copy.tolist())
        for epoch, item, form, copy in zip(*columns, strict=True):
            yield Entry(epoch, item, self.forms[form], copy)

    def __getitem__(self, window: slice) -> Entries:
        return self.take(window)

    def take(self, which: Any) -> Entries:
        """Entries at some positions (a slice, a mask or an array of positions)."""
        return Entries(self.forms, self.epoch[which], self.item[which], self.form[which], self.copy[which])

    @classmethod
    def joined(cls, parts: Sequence[Entries]) -> Entries:
        """One after the other; there is at least one part."""
        columns = zip(*((part.epoch, part.item, part.form, part.copy) for part in parts), strict=True)
        return cls(parts[0].forms, *(np.concatenate(column) for column in columns))


@dataclass(frozen=True, slots=True)
class Share:
    """Share of all examples that have one form: asked for, and realised; ``count`` examples."""

    requested: float
    realised: float
    count: int


class Mixture:
    """The plan over ``items``; `epoch` gives the entries of one."""

    def __init__(self, items: Items, section: MixtureSection, seed: int) -> None:
        self.items, self.section, self.seed = items, section, seed
        self.forms = (*FORMS, "untasked", *(f"replay:{source.name}" for source in section.replay))
        self._replay = {source.name: items.of_source(source.name) for source in section.replay}
        self._domain = items.of_source(DOMAIN)

    def epoch(self, epoch: int) -> Entries:
        """All entries of an epoch, in order."""
        forms = self._drawn_forms(epoch)
        drawn = forms >= 0
        parts = [self._entries(epoch, self._domain[drawn], forms[drawn]), *self._replayed(epoch, int(drawn.sum()))]
        return self._in_order(epoch, Entries.joined(parts))

    def entries(self, listed: Iterable[Entry]) -> Entries:
        """Columns of some entries."""
        rows = [(entry.epoch, entry.item, self.forms.index(entry.form), entry.copy) for entry in listed]
        epoch, item, form, copy = np.array(rows, np.int32).reshape(-1, 4).T
        return Entries(self.forms, epoch, item, form.astype(np.int8), copy)

    def requested(self) -> dict[str, float]:
        """Share of all examples per form, as expected from the configured weights and the kept tasks."""
        section, total = self.section, self.section.both + self.section.caption + self.section.task
        tasked = int(self.items.tasked[self._domain].sum())
        expected = {form: tasked * getattr(section, form) / total for form in FORMS}
        expected["untasked"] = (len(self._domain) - tasked) * section.untasked
        domain = sum(expected.values())
        for source in section.replay:
            if len(self._replay[source.name]):
                expected[f"replay:{source.name}"] = domain * source.weight
        everything = sum(expected.values()) or 1.0
        return {form: count / everything for form, count in expected.items() if count}

    def shares(self, entries: Entries) -> dict[str, Share]:
        """Requested and realised shares of some entries.

        Raises:
            MixtureDriftError: a realised share left the tolerance around the requested one.
        """
        counts = dict(zip(self.forms, np.bincount(entries.form, minlength=len(self.forms)).tolist(), strict=True))
        n, requested = len(entries), self.requested()
        shares = {
            form: Share(requested.get(form, 0.0), counts[form] / n if n else 0.0, counts[form])
            for form in sorted({*requested, *(form for form, count in counts.items() if count)})
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

    def _drawn_forms(self, epoch: int) -> NDArray[np.int8]:
        """Position in ``forms`` of each record of the domain, -1 for one that is left out."""
        section, tasked = self.section, self.items.tasked[self._domain]
        forms = np.full(len(tasked), -1, np.int8)
        points = self._uniforms("form", epoch, self._domain[tasked]) * (section.both + section.caption + section.task)
        edges = np.array([section.both, section.both + section.caption])
        forms[tasked] = np.searchsorted(edges, points, side="right")
        kept = self._uniforms("untasked", epoch, self._domain[~tasked]) < section.untasked
        forms[np.flatnonzero(~tasked)[kept]] = self.forms.index("untasked")
        return forms

    def _replayed(self, epoch: int, domain: int) -> Iterator[Entries]:
        for source in self.section.replay:
            pool = self._replay[source.name]
            pool = pool[np.argsort(self._uniforms("replay", epoch, pool), kind="stable")]
            numbers = np.arange(round(domain * source.weight) if len(pool) else 0)
            copy, place = np.divmod(numbers, max(len(pool), 1))
            form = np.full(len(numbers), self.forms.index(f"replay:{source.name}"))
            yield self._entries(epoch, pool[place] if len(pool) else pool, form, copy)

    def _entries(
        self, epoch: int, items: NDArray[Any], forms: NDArray[Any], copy: NDArray[Any] | None = None
    ) -> Entries:
        copies = np.zeros(len(items), np.int32) if copy is None else copy.astype(np.int32)
        epochs = np.full(len(items), epoch, np.int32)
        return Entries(self.forms, epochs, items.astype(np.int32), forms.astype(np.int8), copies)

    def _in_order(self, epoch: int, entries: Entries) -> Entries:
        """Sorted by a hash of (seed, epoch, source, id, copy); where two are equal, by id and copy."""
        places = np.empty(len(entries))
        groups = np.stack([self.items.source[entries.item], entries.copy])
        for source, copy in np.unique(groups, axis=1).T.tolist():
            which = np.flatnonzero((groups[0] == source) & (groups[1] == copy))
            ids = self.items.ids.take(pa.array(entries.item[which]))
            places[which] = uniforms(ids, self.seed, "epoch", epoch, self.items.names[source], after=(copy,))
        order = np.argsort(places, kind="stable")
        if (np.diff(places[order]) == 0).any():
            ids, copies = self.items.ids.take(pa.array(entries.item)).to_pylist(), entries.copy.tolist()
            order = np.array(sorted(range(len(ids)), key=lambda index: (places[index], ids[index], copies[index])))
        return entries.take(order)

    def _uniforms(self, purpose: str, epoch: int, items: NDArray[Any]) -> NDArray[np.float64]:
        return uniforms(self.items.ids.take(pa.array(items)), self.seed, purpose, epoch)
