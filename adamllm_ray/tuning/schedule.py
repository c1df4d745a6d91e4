"""Which trials end at a rung: Tune's asynchronous halving and median rule, at the configured rungs."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

from adamllm_ray.config import TuningSection

TIME = "examples"
LEAST_SEEN = 3  # scores at a rung before the median rule ends a trial


class RungHalving(AsyncHyperBandScheduler):
    """ASHA at given rungs: Tune's own would compute a geometric row from the first one."""

    def __init__(self, rungs: list[int], end: int, reduction: int) -> None:
        super().__init__(TIME, max_t=end, grace_period=rungs[0], reduction_factor=reduction)
        [bracket] = self._brackets
        bracket._rungs = [(rung, {}) for rung in reversed(rungs)]


def scheduler(section: TuningSection, batch: int) -> Any:
    """Tune's scheduler for a section. ``batch``: examples of an optimizer step, which rungs are rounded up to."""
    rungs = [-(-rung // batch) * batch for rung in section.rungs]
    if section.stopping == "asha":
        return RungHalving(rungs, section.examples or rungs[-1] + 1, section.reduction)
    if section.stopping == "median":
        return MedianStoppingRule(TIME, grace_period=rungs[0], min_samples_required=LEAST_SEEN, hard_stop=True)
    return FIFOScheduler()
