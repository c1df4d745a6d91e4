"""Every example of an epoch once, wherever a run is interrupted and with however many workers it goes on.

No model and no Ray: the plan and who gets what of it (reliability test 46). That real streams follow it is in
test_stream.py and test_feed.py.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from adamllm_ray.config import MixtureSection, TrainingSection
from adamllm_ray.training.batches import micro_batches, steps_for
from adamllm_ray.training.mix import Entries, Entry, Item, Items, Mixture
from adamllm_ray.training.stream import plan

WORLDS = st.sampled_from([1, 2, 3])


def taken(entries: Entries, section: TrainingSection, items: Items, step: int, world: int) -> list[list[list[Entry]]]:
    """For each worker its micro-batches of a step, as `RowBatches.load` cuts them."""
    window = list(entries[step * section.global_batch : (step + 1) * section.global_batch])
    return [
        micro_batches(window, section, rank, world, lambda entry: items.length(entry.item, entry.form))
        for rank in range(world)
    ]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 90),
    seed=st.integers(0, 1000),
    budget=st.sampled_from([None, "padded", "packed"]),
    epochs=st.integers(1, 3),
    lives=st.lists(st.tuples(WORLDS, st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=4),
)
def test_interrupted_runs_see_each_example_once(
    rows: int, seed: int, budget: str | None, epochs: int, lives: list[tuple[int, int, int]]
) -> None:
    """A life takes some steps with some number of workers, and a few more after its last checkpoint that are lost."""
    sizes = {"token_budget": 300, "max_length": 300, "packing": budget == "packed"} if budget else {"micro_batch": 2}
    section = TrainingSection.model_validate({"global_batch": 12, "epochs": epochs, **sizes})
    found = [Item("", f"{n:04x}", n % 3 != 0, (90 + n, 40 + n, 60 + n)) for n in range(rows)]
    items = Items.of(found + [Item("general", f"g{n}", False, (30, 30, 30)) for n in range(4)])
    mixed = {"both": 0.5, "task": 0.5, "untasked": 0.7, "replay": [{"name": "general", "path": "x", "weight": 0.2}]}
    entries = plan(Mixture(items, MixtureSection.model_validate(mixed), seed), section)
    steps, done = steps_for(len(entries), section), 0
    seen: Counter[Entry] = Counter()
    for world, kept, lost in [*lives, (1, steps, 0)]:  # the last life goes to the end
        for step in range(done, min(done + kept + lost, steps)):
            parts = taken(entries, section, items, step, world)
            assert len({len(own) for own in parts}) == 1  # as many forward passes on every worker
            here = Counter(entry for own in parts for micro in own for entry in micro)
            assert here == Counter(entries[step * 12 : (step + 1) * 12])  # the same step with any number of workers
            if step < done + kept:
                seen += here
        done = min(done + kept, steps)
    assert seen == Counter(entries)
    assert set(seen.values()) <= {1}


def test_the_plan_of_an_epoch_does_not_depend_on_how_many_there_are() -> None:
    items = Items.of([Item("", f"{n:04x}", True, (9, 4, 6)) for n in range(50)])
    mix = Mixture(items, MixtureSection(), 3)
    long, short = (
        list(plan(mix, TrainingSection.model_validate({"global_batch": 8, "micro_batch": 2, "epochs": epochs})))
        for epochs in (3, 1)
    )
    assert long[:50] == short
    assert long[50:100] != [entry._replace(epoch=1) for entry in short]
