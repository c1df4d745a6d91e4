"""The mixture is a function of (seed, epoch, id), and what it realises is what was asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from adamllm_ray.config import MixtureSection
from adamllm_ray.errors import MixtureDriftError
from adamllm_ray.training.mix import Entry, Item, Mixture

ITEMS = [Item("", f"id{n}", n % 4 != 0, (10, 4, 6)) for n in range(2000)]


def mixture(items: list[Item] = ITEMS, seed: int = 1, **section: Any) -> Mixture:
    return Mixture(items, MixtureSection.model_validate(section), seed)


def named(mix: Mixture, epoch: int) -> list[tuple[str, str]]:
    return [(mix.items[entry.item].id, entry.form) for entry in mix.epoch(epoch)]


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
    entries = mix.epoch(0)
    replayed = [index for index, entry in enumerate(entries) if entry.form == "replay:general"]
    assert len(replayed) == 100
    assert len({(entries[i].item, entries[i].copy) for i in replayed}) == 100
    assert replayed[0] < 50
    assert replayed[-1] > 450
    assert mix.shares(entries)["replay:general"].requested == pytest.approx(0.2)


def test_drift_is_an_error_but_small_data_is_not() -> None:
    mix = mixture(both=0.5, task=0.5, tolerance=0.02)
    drifted = [entry for entry in mix.epoch(0) if entry.form != "task"]
    with pytest.raises(MixtureDriftError, match="were asked for"):
        mix.shares(drifted)
    few = mixture(ITEMS[1:4], both=0.5, task=0.5, tolerance=0.0)
    few.shares([Entry(0, 0, "both"), Entry(0, 1, "both"), Entry(0, 2, "task")])
