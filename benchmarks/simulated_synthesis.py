"""A synthesis on a cluster in simulated time (SimPy): replicas, blocks, one driver, machines that are lost.

    found = Synthesis(Job(1_000_000, Replicas(204, Lengths(92.0)), Replicas(52, Lengths(23.0, sigma=0)))).run()

The synthesis is the graph of `adamllm_ray.synthesis.graph` block by block. How many blocks a replica works on and is
handed, and how many may wait, come from the product's own `Pool`; a block is done with its longest row; the driver
does something for every task, one after the other; a machine that is lost takes with it the blocks at its replicas and
the results that wait on it, and comes back after ``provision_s``, its replicas after ``start_s`` more. Within a replica
rows take slots first come first served and hold them for a time that is drawn once (lognormal, as response lengths
are); a half-empty replica is no faster per row than a full one, so the end of a run comes out too slow rather than too
fast.

Not modelled: network, disks and memory. Seconds everywhere. Used by cluster_sim.py; no model and no Ray runs here.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from statistics import NormalDist
from typing import Any

import numpy as np
import simpy

from adamllm_ray.config import EngineSection
from adamllm_ray.synthesis.pools import Pool

DAY = 86_400.0
Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Lengths:
    """How long a row holds a slot: lognormal, cut at ``cap`` times its median; ``mean_s`` is the mean after the cut."""

    mean_s: float
    sigma: float = 1.0
    cap: float = 5.12  # 512 new tokens where the median is 100

    def draw(self, random: np.random.Generator, rows: int) -> list[float]:
        """Seconds of each of ``rows`` rows."""
        if not self.sigma:
            return [self.mean_s] * rows
        relative = np.minimum(self.cap, np.exp(self.sigma * random.standard_normal(rows)))
        drawn: list[float] = (relative * (self.mean_s / self.relative_mean)).tolist()
        return drawn

    @cached_property
    def relative_mean(self) -> float:
        """Mean of the same distribution with median 1."""
        quantiles = (NormalDist().inv_cdf((index + 0.5) / 2000) for index in range(2000))
        return sum(min(self.cap, math.exp(self.sigma * z)) for z in quantiles) / 2000


@dataclass(frozen=True)
class Replicas:
    """One pool of ``count`` replicas. ``prepare_s`` is what one CPU thread of a replica does before a row's slot."""

    count: int
    lengths: Lengths
    slots: int = 256
    gpus: float = 1.0  # of each
    prepare_s: float = 0.0
    unevenness: float = 1.0

    @property
    def seconds_per_row(self) -> float:
        """Of a full replica: what `adamllm plan` calls synthesizer_seconds and judge_seconds."""
        return max(self.lengths.mean_s / self.slots, self.prepare_s)

    def pool(self, rows_per_block: int) -> Pool:
        """The product's own arithmetic for this pool."""
        return Pool(EngineSection(replicas=self.count, max_num_seqs=self.slots), rows_per_block, self.unevenness)


@dataclass(frozen=True)
class Job:
    """One synthesis, and the machines for it."""

    rows: int
    synthesizers: Replicas
    judges: Replicas
    rows_per_block: int = 64
    driver_s: float = 0.02  # of the driver, per block: a task of the synthesizer, one of the judge, one of the writer
    write_s: float = 0.5  # to write a block
    writers: int = 32
    gpus_per_node: int = 8
    start_s: float = 0.0  # from a machine to replicas that answer
    provision_s: float = 0.0  # from asking for a machine to having it
    losses_per_node_day: float = 0.0
    head_losses_per_day: float = 0.0  # the same command again, on the machines that are there
    seed: int = 0

    @property
    def ideal_gpu_seconds(self) -> float:
        """Of a run whose replicas are always full and where nothing is lost."""
        return self.rows * sum(pool.seconds_per_row * pool.gpus for pool in (self.synthesizers, self.judges))


@dataclass(frozen=True)
class Outcome:
    """What became of it. ``goodput`` is the GPU-seconds of the ideal run over those that were paid."""

    seconds: float  # from asking for the first machine to the last row on disk
    rows_per_s: float  # over all of that
    steady_rows_per_s: float  # between a tenth and nine tenths of the rows
    first_row_s: float
    asked_again: float  # rows that a synthesizer was asked for once more, over all rows
    losses: int  # of machines, and of the head
    gpu_hours: float
    goodput: float
    idle: tuple[float, float]  # share of all slot-seconds without a row: synthesizers, judges
    driver_busy: float


@dataclass(eq=False)
class Block:
    """Rows that move together. ``home`` is the machine that holds what the last step made of them."""

    rows: int
    home: Node | None = None


@dataclass(eq=False)
class Replica:
    """When its slots and its CPU thread are free, and the blocks it has. ``life`` counts its deaths."""

    kind: Replicas
    alive: bool = False
    life: int = 0
    free: list[float] = field(default_factory=list)
    cpu_free: float = 0.0
    handed: int = 0  # blocks in work or next
    work: list[Block] = field(default_factory=list)
    queue: deque[Block] = field(default_factory=deque)
    node: Node = field(init=False)

    def begin(self, now: float) -> None:
        """Ready for rows, all slots empty."""
        self.alive, self.free, self.cpu_free = True, [now] * self.kind.slots, now

    def end(self) -> None:
        """Dead, with all it had."""
        self.alive, self.life, self.handed, self.work, self.queue = False, self.life + 1, 0, [], deque()

    def take(self, durations: Sequence[float], now: float) -> float:
        """Give these rows their slots. Returns when the last of them is done."""
        end, cpu, free = now, max(now, self.cpu_free), self.free
        for seconds in durations:
            cpu += self.kind.prepare_s
            done = max(cpu, free[0]) + seconds
            heapq.heapreplace(free, done)
            end = max(end, done)
        self.cpu_free = cpu
        return end


@dataclass(eq=False)
class Node:
    """A machine. ``since`` is when it was got, None while there is none; ``life`` counts the times it was lost."""

    gpus: float = 0.0
    replicas: list[Replica] = field(default_factory=list)
    since: float | None = None
    paid_s: float = 0.0
    life: int = 0


class Step:
    """One step of the graph: its replicas, the blocks that wait for it, and those it has done and nobody has taken."""

    def __init__(self, kind: Replicas, rows_per_block: int) -> None:
        self.kind, self.pool = kind, kind.pool(rows_per_block)
        self.replicas = [Replica(kind) for _ in range(kind.count)]
        self.waiting: deque[Block] = deque()
        self.done: deque[Block] = deque()
        self.handed = 0  # blocks at all replicas
        self.asked = 0
        self.slot_seconds = 0.0

    def free_replica(self) -> Replica | None:
        """The live one with the fewest blocks; None if no block waits, all have enough, or too many are unfinished."""
        if not self.waiting or self.handed + len(self.done) >= self.pool.unfinished:
            return None
        alive = [one for one in self.replicas if one.alive]
        least = min(alive, key=attrgetter("handed"), default=None)
        return least if least is not None and least.handed < self.pool.handed else None

    def hand(self, replica: Replica) -> None:
        """Give it the first block that waits."""
        replica.queue.append(self.waiting.popleft())
        replica.handed += 1
        self.handed += 1

    def finish(self, replica: Replica, block: Block) -> None:
        """A block is done there."""
        replica.work.remove(block)
        replica.handed -= 1
        self.handed -= 1
        block.home = replica.node
        self.done.append(block)

    def lose(self, replica: Replica) -> None:
        """The replica is dead; its blocks are the first that wait."""
        self.handed -= replica.handed
        self.waiting.extendleft([*replica.work, *replica.queue])
        replica.end()


class Synthesis:
    """One simulated run: ``run()`` plays it to its end."""

    def __init__(self, job: Job) -> None:
        self.job, self.env = job, simpy.Environment()
        self.random = np.random.default_rng(job.seed)
        self.first, self.second = (Step(kind, job.rows_per_block) for kind in (job.synthesizers, job.judges))
        self.first.done = self.second.waiting
        self.nodes = placed([*self.first.replicas, *self.second.replicas], job.gpus_per_node)
        self.changed, self.finished = self.env.event(), self.env.event()
        self.writing: list[Block] = []
        self.written: list[tuple[float, int]] = []  # (second, rows on disk)
        self.generation = self.losses = 0
        self.driver_s = 0.0
        full, rest = divmod(job.rows, job.rows_per_block)
        self.first.waiting.extend(Block(rows) for rows in [*[job.rows_per_block] * full, *([rest] if rest else [])])

    def run(self) -> Outcome:
        """Play it."""
        for node in self.nodes:
            self.env.process(self._machine(node, self.job.provision_s))
            if self.job.losses_per_node_day:
                self.env.process(self._misfortune(node))
        if self.job.head_losses_per_day:
            self.env.process(self._head())
        self.env.process(self._driver())
        self.env.run(self.finished)
        return self._outcome()

    def _driver(self) -> Process:
        """One task after the other, each for a third of ``driver_s``; what is nearest to the disk goes first."""
        while True:
            if self.second.done and len(self.writing) < self.job.writers:
                yield from self._costs()
                if self.second.done:
                    self.writing.append(self.second.done.popleft())
                    self.env.process(self._write(self.writing[-1]))
                continue
            step = next((step for step in (self.second, self.first) if step.free_replica()), None)
            if step is None:
                yield self.changed
                continue
            yield from self._costs()
            replica = step.free_replica()  # it may have been lost while the driver was at it
            if replica is not None:
                step.hand(replica)
                self._start_blocks(step, replica)

    def _costs(self) -> Process:
        if self.job.driver_s:
            yield self.env.timeout(self.job.driver_s / 3)
            self.driver_s += self.job.driver_s / 3

    def _start_blocks(self, step: Step, replica: Replica) -> None:
        while replica.queue and len(replica.work) < step.pool.calls:
            block = replica.queue.popleft()
            replica.work.append(block)
            durations = replica.kind.lengths.draw(self.random, block.rows)
            step.asked += block.rows
            step.slot_seconds += sum(durations)
            self.env.process(self._work(step, replica, block, replica.take(durations, self.env.now)))

    def _work(self, step: Step, replica: Replica, block: Block, end: float) -> Process:
        life = replica.life
        yield self.env.timeout(end - self.env.now)
        if replica.life != life:
            return
        step.finish(replica, block)
        self._start_blocks(step, replica)
        self._wake()

    def _write(self, block: Block) -> Process:
        generation = self.generation
        yield self.env.timeout(self.job.write_s)
        if generation != self.generation:
            return
        self.writing.remove(block)
        done = (self.written[-1][1] if self.written else 0) + block.rows
        self.written.append((self.env.now, done))
        if done == self.job.rows:
            self.finished.succeed()
        self._wake()

    def _machine(self, node: Node, wait_s: float) -> Process:
        """Get a machine and start its replicas; given up where it is lost before they answer."""
        life = node.life
        yield self.env.timeout(wait_s)
        if node.life != life:
            return
        node.since = self.env.now if node.since is None else node.since
        yield self.env.timeout(self.job.start_s)
        if node.life == life:
            for replica in node.replicas:
                replica.begin(self.env.now)
            self._wake()

    def _misfortune(self, node: Node) -> Process:
        while True:
            yield self.env.timeout(self.random.exponential(DAY / self.job.losses_per_node_day))
            if node.since is None:
                continue
            self.losses += 1
            self._lose(node)
            node.paid_s += self.env.now - node.since
            node.since = None
            for blocks in (self.second.waiting, self.second.done):  # in place: two steps share the first
                gone = [block for block in blocks if block.home is node]
                for block in gone:
                    blocks.remove(block)
                self.first.waiting.extendleft(gone)
            self.env.process(self._machine(node, self.job.provision_s))
            self._wake()

    def _head(self) -> Process:
        """All that is not on disk is gone; the machines stay, their replicas start again."""
        while True:
            yield self.env.timeout(self.random.exponential(DAY / self.job.head_losses_per_day))
            self.losses += 1
            self.generation += 1
            for node in self.nodes:
                self._lose(node)
                self.env.process(self._machine(node, 0.0 if node.since is not None else self.job.provision_s))
            for blocks in (self.second.waiting, self.second.done, self.writing):
                self.first.waiting.extendleft(blocks)
                blocks.clear()

    def _lose(self, node: Node) -> None:
        """Kill the replicas of a node; their blocks go back to the front of what waits for their step."""
        node.life += 1
        for replica in node.replicas:
            (self.first if replica in self.first.replicas else self.second).lose(replica)

    def _wake(self) -> None:
        woken, self.changed = self.changed, self.env.event()
        woken.succeed()

    def _outcome(self) -> Outcome:
        job, end = self.job, self.env.now
        paid = sum(n.gpus * (n.paid_s + (0.0 if n.since is None else end - n.since)) for n in self.nodes)
        early, late = (next(at for at, rows in self.written if rows >= share * job.rows) for share in (0.1, 0.9))
        idle = [1 - step.slot_seconds / (step.kind.count * step.kind.slots * end) for step in (self.first, self.second)]
        return Outcome(
            seconds=end,
            rows_per_s=job.rows / end,
            steady_rows_per_s=0.8 * job.rows / (late - early) if late > early else job.rows / end,
            first_row_s=self.written[0][0],
            asked_again=(self.first.asked - job.rows) / job.rows,
            losses=self.losses,
            gpu_hours=paid / 3600,
            goodput=job.ideal_gpu_seconds / paid if paid else 0.0,
            idle=(idle[0], idle[1]),
            driver_busy=self.driver_s / end,
        )


def placed(replicas: Sequence[Replica], gpus_per_node: int) -> list[Node]:
    """Replicas on machines in order, each machine filled before the next. A machine has the GPUs that are used."""
    nodes = [Node()]
    for replica in replicas:
        if nodes[-1].gpus + replica.kind.gpus > gpus_per_node:
            nodes.append(Node())
        nodes[-1].gpus += replica.kind.gpus
        nodes[-1].replicas.append(replica)
        replica.node = nodes[-1]
    return nodes
