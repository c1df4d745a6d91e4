"""The same global batches however many workers share them, each example once per epoch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamllm_ray.config import TrainingSection
from adamllm_ray.training.batches import epoch_order, micro_batches, steps_for, token_parts


def section(**keys: int) -> TrainingSection:
    return TrainingSection.model_validate({"global_batch": 16, "micro_batch": 2, **keys})


@pytest.mark.parametrize("size", [16, 13, 1])
def test_workers_share_a_window_without_loss_or_repetition(size: int) -> None:
    window = list(range(size))
    for world in (1, 2, 4):
        parts = [micro_batches(window, section(), rank, world, lambda item: -item) for rank in range(world)]
        assert {len(part) for part in parts} == {8 // world}
        assert sorted(item for part in parts for micro in part for item in micro) == window
        assert all(len(micro) <= 2 for part in parts for micro in part)


def test_a_number_of_workers_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="workers"):
        micro_batches([1], section(), 0, 3, lambda item: item)


def test_order_is_keyed_on_ids() -> None:
    ids = [f"id{n}" for n in range(100)]
    order = [ids[i] for i in epoch_order(ids, 0, 0)]
    shuffled = ids[::-1]
    assert order == [shuffled[i] for i in epoch_order(shuffled, 0, 0)]
    assert sorted(order) == sorted(ids)
    assert order != [ids[i] for i in epoch_order(ids, 0, 1)]


def test_steps() -> None:
    assert [steps_for(n, section()) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
    assert steps_for(1000, section(max_steps=3)) == 3


@given(
    lengths=st.lists(st.integers(1, 120), max_size=60),
    world=st.integers(1, 4),
    packed=st.booleans(),
)
def test_token_parts_hold_every_example_once_and_stay_in_budget(lengths: list[int], world: int, packed: bool) -> None:
    window = list(enumerate(lengths))
    parts = token_parts(window, lambda item: item[1], 100, world, packed=packed)
    assert len(parts) % world == 0
    assert sorted(item for part in parts for item in part) == window
    for part in parts:
        tokens = [length for _, length in part]
        assert len(part) <= 1 or (sum(tokens) if packed else len(tokens) * max(tokens)) <= 100


def test_packing_fills_its_sequences() -> None:
    heavy = [int(20 * 1.05**n) for n in range(64)]  # 20 to 430 tokens
    parts = token_parts(heavy, lambda length: length, 512, 2, packed=True)
    assert sum(heavy) / (512 * len(parts)) > 0.9
    padded = token_parts(heavy, lambda length: length, 512, 2, packed=False)
    assert len(padded) >= len(parts)
