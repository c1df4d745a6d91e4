"""An engine stand-in that sleeps: for benchmarks of *scheduling*, on a machine that could not run eight real engines.

What it stands for is one replica with continuous batching: ``max_num_seqs`` slots, a step every ``step_s`` seconds
that gives each occupied slot one token, responses of very different lengths (lognormal, sigma 1, cut at ``cap``
tokens), and one CPU thread that prepares an image for ``prepare_s`` seconds before its row can take a slot. A length
depends on the row's id alone, so every contestant gets the same work. Nothing is generated: each row gets the same
well-formed task, and the judge always says Yes. What it cannot show is how fast vLLM is; synthesis_overhead.py and
gpu/ do that with the real engine.

The clock starts when all replicas of a run are up (``gate``), so that start-up is not part of any figure.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from adamllm_ray.config import EngineSection
from adamllm_ray.data.draws import uniform
from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, hinted
from adamllm_ray.synthesis.requests import Completion, Request, SamplingSpec

REPORT_S = 0.2


@dataclass(frozen=True)
class Speed:
    """Time constants of a stand-in replica, in seconds and tokens."""

    step_s: float = 0.1
    median_tokens: int = 100
    sigma: float = 1.0
    cap: int = 512
    prepare_s: float = 0.01
    judge_s: float = 2.0  # one prompt in its slot: prefill of the few-shot header's rest and one token

    def tokens(self, row: str) -> int:
        """Length of the response to this row."""
        chance = min(max(uniform(0, "length", row), 1e-9), 1 - 1e-9)
        return min(self.cap, max(1, round(self.median_tokens * math.exp(self.sigma * NormalDist().inv_cdf(chance)))))


@dataclass(frozen=True)
class StandinMaker:
    """Engine maker: give it to ``synthesize(engine_maker=...)``. Replicas report to files in ``folder``."""

    folder: str
    replicas: int  # of all pools together: work begins when so many are up
    speed: Speed = Speed()

    def __call__(self, model: str, settings: EngineSection, images: bool) -> Standin:
        return Standin(self, model, settings.max_num_seqs, images)


class Standin:
    """See the module docstring."""

    def __init__(self, maker: StandinMaker, model: str, slots: int, images: bool) -> None:
        from adamllm_ray.synthesis.actors import load_chat

        self.speed, self.images, self.width = maker.speed, images, slots
        self.task = well_formed(load_chat(model)) if images else []
        self.gate = Gate(Path(maker.folder), maker.replicas)
        self.usage = Usage("synthesizer" if images else "judge", slots)
        self.file = self.gate.join(self.usage.role)
        self._slots: asyncio.Semaphore | None = None
        self._later: asyncio.Future[None] | None = None
        self._reported = 0.0

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        """One completion per request, after as long as a replica of this speed would take."""
        if self._slots is None:  # made in the loop that uses them
            self._slots, self._cpu = asyncio.Semaphore(self.width), asyncio.Lock()
        await self.gate.opened()
        done = await asyncio.gather(*(self._one(request, sampling) for request in requests))
        if time.monotonic() - self._reported > REPORT_S:
            self._report()
        elif self._later is None or self._later.done():
            self._later = asyncio.ensure_future(self._report_later())
        return done

    async def _report_later(self) -> None:
        """There may be hundreds of rows a second."""
        await asyncio.sleep(REPORT_S)
        self._report()

    def _report(self) -> None:
        """Whole or not at all: replicas are killed."""
        self._reported = time.monotonic()
        passing = self.file.with_suffix(".tmp")
        passing.write_text(json.dumps(self.usage.report()), "utf-8")
        passing.replace(self.file)

    async def _one(self, request: Request, sampling: SamplingSpec) -> Completion:
        if self.images and self.speed.prepare_s:
            async with self._cpu:
                await asyncio.sleep(self.speed.prepare_s)
        assert self._slots is not None
        async with self._slots:
            seconds = self.speed.tokens(request.id) * self.speed.step_s if self.images else self.speed.judge_s
            self.usage.change(+1)
            await asyncio.sleep(seconds)
            self.usage.change(-1)
        if self.images:
            return Completion(request.id, list(self.task), "stop")
        yes, *others = sampling.allowed_token_ids or ()
        return Completion(request.id, [yes], "length", {yes: -0.1, **dict.fromkeys(others, -3.0)})


@dataclass
class Usage:
    """Slot-seconds used and seconds with no row at all, at one replica. Times are Unix seconds."""

    role: str
    slots: int
    rows: int = 0
    running: int = 0
    slot_seconds: float = 0.0
    busy_seconds: float = 0.0
    since: float = 0.0

    def change(self, by: int) -> None:
        """A row takes (+1) or leaves (-1) a slot."""
        now = time.time()
        self.slot_seconds += self.running * (now - self.since)
        self.busy_seconds += (now - self.since) if self.running else 0.0
        self.since, self.running = now, self.running + by
        self.rows += by < 0

    def report(self) -> dict[str, Any]:
        """The figures as plain data."""
        return asdict(self)


class Gate:
    """Opens when every replica of the run has started; the newest file of the folder is the starting shot."""

    def __init__(self, folder: Path, replicas: int) -> None:
        self.folder, self.replicas, self._open = folder, replicas, False

    def join(self, role: str) -> Path:
        """This process is ready. Returns the file that its figures belong into."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"ready-{role}-{os.getpid()}").touch()
        return self.folder / f"usage-{role}-{os.getpid()}.json"

    async def opened(self) -> None:
        """Wait for the others."""
        while not self._open:
            self._open = len(list(self.folder.glob("ready-*"))) >= self.replicas
            if not self._open:
                await asyncio.sleep(0.05)

    def opened_at(self) -> float:
        """Unix time of the starting shot."""
        return max(file.stat().st_mtime for file in self.folder.glob("ready-*"))

    def usage(self, role: str) -> list[dict[str, Any]]:
        """What the replicas of a pool reported last."""
        return [json.loads(file.read_text("utf-8")) for file in sorted(self.folder.glob(f"usage-{role}-*.json"))]


def well_formed(chat: ChatFormat) -> list[int]:
    """Ids of a finished response with both answers."""
    ids: list[int] = []
    for hint, answer in ((HINT_PRECISE, "a circle"), (HINT_INFORMATIVE, "It is a circle.")):
        ids += [*(chat.user_open if ids else ()), *chat.text_ids(hinted(hint, "What is it?")), *chat.assistant_open]
        ids += chat.text_ids(answer)
    return [*ids, *chat.turn_end, chat.eos_id]
