"""Which example goes into which micro-batch of which worker: one global order, cut the same way by everybody.

The order depends on (seed, epoch, id) only. A global batch is a window of it, so what an optimizer step sees does not
depend on the number of workers, and the data position of a run is one number: its step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from adamllm_ray.config import TrainingSection
from adamllm_ray.data.record import uniform
from adamllm_ray.training.collate import Batch, Collator
from adamllm_ray.training.conversations import Example

T = TypeVar("T")


def epoch_order(ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Positions of ``ids`` in the order of this epoch: sorted by a hash of (seed, epoch, id)."""
    return sorted(range(len(ids)), key=lambda index: (uniform(seed, "epoch", epoch, ids[index]), ids[index]))


def steps_for(examples: int, section: TrainingSection) -> int:
    """Optimizer steps for a number of examples over all epochs; the last one may be smaller than global_batch."""
    steps = -(-examples // section.global_batch)
    return steps if section.max_steps is None else min(steps, section.max_steps)


def micro_batches(
    window: Sequence[T], section: TrainingSection, rank: int, world: int, cost: Callable[[T], int]
) -> list[list[T]]:
    """This worker's micro-batches of one global batch (some empty when the window is short).

    The window is sorted by cost and cut into equal parts, dealt in turn: little padding, equal work per worker.

    Args:
        window: the examples of one step, at most global_batch of them.
        cost: about how many tokens an example has.
    """
    parts = section.global_batch // section.micro_batch
    if parts % world:
        raise ValueError(f"global_batch / micro_batch = {parts} is not a multiple of {world} workers")
    ranked = sorted(window, key=cost)
    bounds = [len(ranked) * part // parts for part in range(parts + 1)]
    return [ranked[bounds[part] : bounds[part + 1]] for part in range(rank, parts, world)]


class ExampleBatches:
    """Batches of examples that are all in memory: seed data, pocket models, tests.

    Attributes:
        steps: optimizer steps in all.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        collator: Collator,
        section: TrainingSection,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.examples, self.collator, self.section = examples, collator, section
        self.seed, self.rank, self.world = seed, rank, world
        self.steps = steps_for(len(examples) * section.epochs, section)
        self._ids = [example.id for example in examples]
        self._orders: dict[int, list[int]] = {}

    def load(self, step: int) -> list[Batch]:
        """This worker's micro-batches of a step, counted from 0."""
        size = self.section.global_batch
        stop = min((step + 1) * size, len(self.examples) * self.section.epochs)
        window = [self._example(position) for position in range(step * size, stop)]
        parts = micro_batches(window, self.section, self.rank, self.world, lambda example: len(example.ids))
        return [self.collator(part) if part else self.collator(window[:1], weighted=False) for part in parts]

    def _example(self, position: int) -> Example:
        epoch, place = divmod(position, len(self.examples))
        if epoch not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key >= epoch - 1}
            self._orders[epoch] = epoch_order(self._ids, self.seed, epoch)
        return self.examples[self._orders[epoch][place]]
