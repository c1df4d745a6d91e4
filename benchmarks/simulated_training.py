"""A training on a cluster in simulated time (SimPy): steps, checkpoints, machines that are lost.

    seconds, steps_again = Training(15_625, 3.5, checkpoint_every=170, save_s=15, nodes=4, start_s=180).run()

All workers step together, so one lost machine stops them all, and they continue from the last checkpoint that was
whole. Not modelled: how the time of a step grows with the number of GPUs (``step_s`` is given), and checkpoints that
are read slowly. Seconds everywhere. Used by cluster_sim.py.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

DAY = 86_400.0
Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Training:
    """See the module. ``start_s``: from machines to the first step, model and checkpoint read."""

    steps: int
    step_s: float
    checkpoint_every: int
    save_s: float
    nodes: int
    start_s: float
    provision_s: float = 0.0
    losses_per_node_day: float = 0.0
    seed: int = 0

    def run(self) -> tuple[float, int]:
        """Seconds from asking for the machines to the last step, and steps done again."""
        env = simpy.Environment()
        random = np.random.default_rng(self.seed)
        again = [0]
        training = env.process(self._train(env, again))
        if self.losses_per_node_day:
            env.process(self._losses(env, training, random))
        env.run(training)
        return env.now, again[0]

    def _train(self, env: simpy.Environment, again: list[int]) -> Process:
        saved = step = 0
        wait_s = self.provision_s + self.start_s
        while saved < self.steps:
            try:
                yield env.timeout(wait_s)
                while saved < self.steps:
                    for _ in range(min(self.checkpoint_every, self.steps - saved)):
                        yield env.timeout(self.step_s)
                        step += 1
                    yield env.timeout(self.save_s)
                    saved = step
            except simpy.Interrupt:
                again[0] += step - saved
                step = saved
                wait_s = self.provision_s + self.start_s

    def _losses(self, env: simpy.Environment, training: simpy.Process, random: np.random.Generator) -> Process:
        while True:
            yield env.timeout(random.exponential(DAY / (self.losses_per_node_day * self.nodes)))
            if not training.is_alive:
                return
            training.interrupt()
