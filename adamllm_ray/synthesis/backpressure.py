"""A bound on the work that a kill can cost: finished blocks that wait for the next step of the graph.

Ray Data holds a pool back by *bytes*, and only when half of its object store is in use. Tasks and captions are a few
kilobytes a row, so in front of a slow judge or a slow disk thousands of synthesized rows would wait, paid for and not
yet written; a kill would lose them (measured: 175 of 315 rows, where 20 were at the engines). Here the blocks that a
pool works on and those of its results that wait for the next step are bounded together.

The rule joins Ray's own ones, by the interface that they use (docs/decisions/0018-bounded-waiting.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.base_physical_operator import InternalQueueOperatorMixin

from adamllm_ray.synthesis.release import forget_figures

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor_state import Topology

LIMITS_KEY = "adamllm.blocks_unfinished"


class BoundedWaiting(BackpressurePolicy):
    """No new block for a step that has its limit in work and waiting in front of the next step."""

    def __init__(self, data_context: DataContext, topology: Topology, resource_manager: Any) -> None:
        super().__init__(data_context, topology, resource_manager)
        self._limits: Mapping[str, int] = data_context.get_config(LIMITS_KEY, {})

    def can_add_input(self, op: PhysicalOperator) -> bool:
        """Whether ``op`` may start on another block. Ray lets one through all the same when nothing else moves."""
        forget_figures(op)  # here, because Ray asks about every step all the time
        limit = next((limit for name, limit in self._limits.items() if name in op.name), None)
        return limit is None or op.num_active_tasks() + self._waiting(op) < limit

    def _waiting(self, op: PhysicalOperator) -> int:
        taken = sum(
            follower.internal_input_queue_num_blocks()
            for follower in op.output_dependencies
            if isinstance(follower, InternalQueueOperatorMixin)
        )
        waiting: int = self._topology[op].total_enqueued_output_blocks() + taken
        return waiting


@contextmanager
def bounded_waiting(limits: Mapping[str, int]) -> Iterator[None]:
    """For the datasets made in the block: {part of a step's name: its blocks in work and waiting for the next}."""
    context = DataContext.get_current()
    ours = {
        ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY: [*ENABLED_BACKPRESSURE_POLICIES, BoundedWaiting],
        LIMITS_KEY: dict(limits),
    }
    for key, value in ours.items():
        context.set_config(key, value)
    try:
        yield
    finally:
        for key in ours:
            context.remove_config(key)
