"""The mixture is a function of (seed, epoch, id), and what it realises is what was asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.config import MixtureSection
from adamllm_ray.data.draws import uniform
from adamllm_ray.errors import MixtureDriftError
from adamllm_ray.training import mix as mix_module
from adamllm_ray.training.mix import Entries, Entry, Item, Items, Mixture

ITEMS = [Item("", f"id{n}", n % 4 != 0, (10, 4, 6)) for n in range(2000)]


def mixture(items: list[Item] = ITEMS, seed: int = 1, **section: Any) -> Mixture:
    return Mixture(Items.of(items), MixtureSection.model_validate(section), seed)


def named(mix: Mixture, epoch: int) -> list[tuple[str, str]]:
    return [(mix.items.id(entry.item), entry.form) for entry in mix.epoch(epoch)]


def test_draws_do_not_depend_on_the_order_of_rows() -> None:
    ratios = {"both": 0.5, "caption": 0.25, "task": 0.25, "untasked": 0.5}
    straight, reversed_ = mixture(**ratios), mixture(ITEMS[::-1], **ratios)
    assert named(straight, 0) == named(reversed_, 0)
    assert named(straight, 0) != named(straight, 1)
    assert dict(named(straight, 0)) != dict(named(straight, 1))  # forms are drawn again
    assert named(straight, 0) != named(mixture(seed=2, **ratios), 0)


def test_a_record_keeps_its_draw_when_others_are_gone() -> None:
    whole, part = dict(named(mixture(both=1, task=1), 0)), dict(named(mixture(ITEMS[:100], both=1, task=1), 0))
    assert all(whole[name] == form for name, form in part.items())


def test_realised_shares_are_the_requested_ones() -> None:
    mix = mixture(both=0.6, caption=0.2, task=0.2, untasked=0.5)
    shares = mix.shares(mix.epoch(0))
    assert shares["both"].requested == pytest.approx(1500 * 0.6 / 1750)
    for share in shares.values():
        assert share.realised == pytest.approx(share.requested, abs=0.04)
    assert sum(share.count for share in shares.values()) == len(mix.epoch(0))


def test_default_uses_every_record_once() -> None:
    mix = mixture()
    counts = Counter(name for name, _ in named(mix, 0))
    assert set(counts.values()) == {1}
    assert len(counts) == len(ITEMS)


def test_replay_is_exact_interleaved_and_repeated_when_small() -> None:
    items = [*ITEMS[:400], *(Item("general", f"g{n}", False, (5, 5, 5)) for n in range(30))]
    mix = mixture(items, replay=[{"name": "general", "path": "x", "weight": 0.25}])
    drawn = mix.epoch(0)
    entries = list(drawn)
    replayed = [index for index, entry in enumerate(entries) if entry.form == "replay:general"]
    assert len(replayed) == 100
    assert len({(entries[i].item, entries[i].copy) for i in replayed}) == 100
    assert replayed[0] < 50
    assert replayed[-1] > 450
    assert mix.shares(drawn)["replay:general"].requested == pytest.approx(0.2)


def test_drift_is_an_error_but_small_data_is_not() -> None:
    mix = mixture(both=0.5, task=0.5, tolerance=0.02)
    drifted = mix.entries(entry for entry in mix.epoch(0) if entry.form != "task")
    with pytest.raises(MixtureDriftError, match="were asked for"):
        mix.shares(drifted)
    few = mixture(ITEMS[1:4], both=0.5, task=0.5, tolerance=0.0)
    few.shares(few.entries([Entry(0, 0, "both"), Entry(0, 1, "both"), Entry(0, 2, "task")]))


def _by_hand(mix: Mixture, epoch: int) -> list[Entry]:
    """The mixture as its definition says, a record at a time: what the columns must be equal to."""
    section, seed, items = mix.section, mix.seed, [mix.items[index] for index in range(len(mix.items))]
    entries = []
    for index, item in enumerate(items):
        if item.source:
            continue
        point = uniform(seed, "form", epoch, item.id) * (section.both + section.caption + section.task)
        form = "both" if point < section.both else "caption" if point < section.both + section.caption else "task"
        if item.tasked:
            entries.append(Entry(epoch, index, form))
        elif uniform(seed, "untasked", epoch, item.id) < section.untasked:
            entries.append(Entry(epoch, index, "untasked"))
    domain = len(entries)
    for source in section.replay:
        pool = [index for index, item in enumerate(items) if item.source == source.name]
        pool.sort(key=lambda index: uniform(seed, "replay", epoch, items[index].id))
        for number in range(round(domain * source.weight) if pool else 0):
            copy, place = divmod(number, len(pool))
            entries.append(Entry(epoch, pool[place], f"replay:{source.name}", copy))
    return sorted(
        entries,
        key=lambda e: (
            uniform(seed, "epoch", epoch, items[e.item].source, items[e.item].id, e.copy),
            items[e.item].id,
            e.copy,
        ),
    )


@settings(deadline=None, max_examples=40)
@given(
    counts=st.tuples(st.integers(0, 60), st.integers(0, 5)),
    ratios=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 1), st.floats(0, 1)),
    draw=st.tuples(st.integers(0, 2**31), st.integers(0, 9)),
)
def test_columns_are_what_the_definition_says(
    counts: tuple[int, int], ratios: tuple[float, float, float, float], draw: tuple[int, int]
) -> None:
    items = [Item("", f"id{n}", n % 3 != 0, (9, 4, 6)) for n in range(counts[0])]
    items += [Item("general", f"g{n}", False, (5, 5, 5)) for n in range(counts[1])]
    both, caption, task, untasked = ratios
    replay = [{"name": "general", "path": "x", "weight": 0.4}]
    mix = mixture(items, draw[0], both=both, caption=caption, task=task, untasked=untasked, replay=replay)
    assert list(mix.epoch(draw[1])) == _by_hand(mix, draw[1])


def test_equal_draws_are_ordered_by_id_and_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix_module, "uniforms", lambda ids, *_, **__: np.zeros(len(ids)))
    items = [*ITEMS[:30], Item("general", "id7", False, (5, 5, 5))]
    mix = mixture(items, replay=[{"name": "general", "path": "x", "weight": 0.1}])
    found = [(mix.items.id(entry.item), entry.copy) for entry in mix.epoch(0)]
    assert found == sorted(found)
    assert len(Entries.joined([mix.epoch(0), mix.epoch(1)])) == 2 * len(found)
