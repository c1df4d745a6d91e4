"""Which example goes into which micro-batch of which worker: one global order, cut the same way by everybody.

The order depends on (seed, epoch, id) only. A global batch is a window of it, so what an optimizer step sees does not
depend on the number of workers, and the data position of a run is one number: its step.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from adamllm_ray.data.draws import uniform
from adamllm_ray.training.collate import Batch, Collator
from adamllm_ray.training.conversations import Example

if TYPE_CHECKING:
    from adamllm_ray.config import TrainingSection

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

    Every worker gets the same number of them. Without a token budget the window is sorted by cost and cut into parts
    of equally many examples, dealt in turn; with one, each part holds as many as fit (see `token_parts`).

    Args:
        window: the examples of one step, at most global_batch of them.
        cost: tokens of an example, image tokens included.
    """
    if section.token_budget is not None:
        return token_parts(window, cost, section.token_budget, world, packed=section.packing)[rank::world]
    parts = section.global_batch // section.micro_batch
    if parts % world:
        raise ValueError(f"global_batch / micro_batch = {parts} is not a multiple of {world} workers")
    ranked = sorted(window, key=cost)
    bounds = [len(ranked) * part // parts for part in range(parts + 1)]
    return [ranked[bounds[part] : bounds[part + 1]] for part in range(rank, parts, world)]


def token_parts(
    window: Sequence[T], cost: Callable[[T], int], budget: int, world: int, *, packed: bool
) -> list[list[T]]:
    """The window in parts of at most ``budget`` tokens (padding counted unless packed); a multiple of ``world`` parts.

    Parts come in the order of their work, so those dealt to the workers at the same time are alike. An example above
    the budget gets a part of its own. Parts are empty when there are fewer examples than workers.
    """
    ranked = sorted(window, key=cost, reverse=True)
    parts = _joined_parts(ranked, cost, budget, world) if packed else _padded_parts(ranked, cost, budget, world)
    work = [sum(map(cost, part)) if packed else len(part) * max(map(cost, part), default=0) for part in parts]
    return [parts[index] for index in sorted(range(len(parts)), key=lambda index: -work[index])]


def _joined_parts(ranked: Sequence[T], cost: Callable[[T], int], budget: int, world: int) -> list[list[T]]:
    """Longest first, each into the part with the fewest tokens so far: even parts (Graham's LPT rule)."""
    total = sum(map(cost, ranked))
    count = max(1, -(-total // (budget * world))) * world
    while True:
        parts: list[list[T]] = [[] for _ in range(count)]
        heap = [(0, index) for index in range(count)]
        for item in ranked:
            load, index = heap[0]
            parts[index].append(item)
            heapq.heapreplace(heap, (load + cost(item), index))
        if all(len(parts[index]) <= 1 or load <= budget for load, index in heap):
            return parts
        count += world


def _padded_parts(ranked: Sequence[T], cost: Callable[[T], int], budget: int, world: int) -> list[list[T]]:
    """Neighbours by length share a part, so little is padded."""
    parts: list[list[T]] = []
    for item in ranked:
        if parts and cost(parts[-1][0]) * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(item)
        else:
            parts.append([item])
    while not parts or len(parts) % world:
        widest = max(parts, key=len, default=[])
        half = len(widest) // 2
        parts.append(widest[len(widest) - half :])
        del widest[len(widest) - half :]
    return parts


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
        parts = micro_batches(window, self.section, self.rank, self.world, self.collator.length)
        return [self.collator(part) if part else self.collator(window[:1], weighted=False) for part in parts]

    def _example(self, position: int) -> Example:
        epoch, place = divmod(position, len(self.examples))
        if epoch not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key >= epoch - 1}
            self._orders[epoch] = epoch_order(self._ids, self.seed, epoch)
        return self.examples[self._orders[epoch][place]]
