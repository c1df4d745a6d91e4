"""A stand-in for vLLM in the *fault* tests, where what counts is which rows come out, not what a model says.

It writes a well-formed task for every image (which one depends on the row's id, so that a misplaced answer shows),
sleeps a set time per row so that a kill can be aimed, logs every row it is asked for, and can die in the ways a real
engine dies. It proves nothing about generation; tests/synthesis/test_pipeline.py does that with vLLM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.config import EngineSection, RunConfig, parse_config
from adamllm_ray.data import storage
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.record import RECORD_SCHEMA, record_id
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ModelError
from adamllm_ray.models.chat import ChatFormat
from adamllm_ray.models.lean import hidden
from adamllm_ray.synthesis.prompts import HINT_INFORMATIVE, HINT_PRECISE, hinted
from adamllm_ray.synthesis.requests import Completion, Request, SamplingSpec

CHUNK = 64 << 20
TURNS = 2  # rows that an engine works on at the same time


@dataclass(frozen=True)
class FakeMaker:
    """Engine maker: give it to ``synthesize(engine_maker=...)``. Each synthesizer logs its rows to ``log/<pid>``."""

    log: str
    seconds_per_row: float = 0.0
    judge_seconds_per_row: float = 0.0
    poison: str = ""  # the engine raises when it is asked for this id
    broken: str = ""  # the engine does not start, with this ModelError
    deadly: tuple[str, ...] = ()  # the whole process is killed when the synthesizer is asked for one of these
    deadly_to_judge: tuple[str, ...] = ()  # the same for the judge; both in every life
    hungry: str = ""  # asked for this id, the engine takes memory until the process is killed
    most_bytes: int = 0  # but no more than this
    dies_after: int = 0  # the whole process dies after this many rows, in every life
    child: bool = False  # a child process stands for the engine core; when it dies, the process ends itself

    def __call__(self, model: str, settings: EngineSection, images: bool) -> FakeEngine:
        if self.broken:
            raise ModelError(self.broken)
        return FakeEngine(self, model, images)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (type(self), asdict(self))


def _arrived(kind: type[FakeMaker], fields: dict[str, Any]) -> FakeMaker:
    """The maker, unpickled. In a replica's process transformers is told that there is no torch: a tokenizer does
    without, and loads in a quarter of the CPU seconds (docs/decisions/0122-what-the-suite-costs.md)."""
    import ray

    if "torch" not in sys.modules and ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        without_torch()
    return kind(**fields)


def without_torch() -> None:
    """Let transformers look for torch while it is hidden; it remembers what it found."""
    with hidden("torch"):
        from transformers.utils import is_torch_available, is_torchvision_available

        assert not is_torch_available()
        assert not is_torchvision_available()


class FakeEngine:
    """See the module docstring."""

    def __init__(self, maker: FakeMaker, model: str, images: bool) -> None:
        from adamllm_ray.synthesis.actors import load_chat

        self.maker, self.images, self.done = maker, images, 0
        self.role = "synthesizer" if images else "judge"
        self.log = Path(maker.log)
        self.log.mkdir(exist_ok=True, parents=True)
        (self.log / f"{self.role}-{os.getpid()}").touch()
        self.chat = load_chat(model) if images else None
        self.turns = asyncio.Semaphore(TURNS)  # who waits here is not paced yet
        if maker.child:
            self._start_child()

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        ids = [request.id for request in requests]
        if self.maker.poison in ids:
            raise RuntimeError("poisoned")
        if self.images or self.maker.deadly_to_judge:
            with (self.log / f"{self.role}-{os.getpid()}").open("a") as log:
                log.writelines(f"{name} {time.time():.3f}\n" for name in ids)
        pace = self.maker.seconds_per_row if self.images else self.maker.judge_seconds_per_row
        async with self.turns:
            await asyncio.sleep(pace * len(requests))
        self.done += len(requests)
        if not set(ids).isdisjoint(self.maker.deadly if self.images else self.maker.deadly_to_judge):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.images and self.maker.hungry in ids:
            await asyncio.to_thread(eat, self.maker.most_bytes)
        if self.images and 0 < self.maker.dies_after <= self.done:
            os._exit(1)
        return [self._answer(request, sampling) for request in requests]

    def _answer(self, request: Request, sampling: SamplingSpec) -> Completion:
        if self.chat is not None:
            task = task_response(self.chat, number_of(request.id))
            return Completion(request.id, list(task), "stop")
        yes, *others = sampling.allowed_token_ids or ()
        return Completion(request.id, [yes], "length", {yes: -0.1, **dict.fromkeys(others, -3.0)})

    def _start_child(self) -> None:
        """`cat` ends with its parent, as vLLM's core does; and this process ends with it, as ours does."""
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        (self.log / f"{self.role}_child-{child.pid}").touch()

        def watch() -> None:
            child.wait()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def eat(most: int) -> None:
    """Take memory and keep it for a while: about a GiB per second, so that whoever watches has time to see it."""
    held = []
    for _ in range(0, most, CHUNK):
        held.append(b"\1" * CHUNK)  # written to, or the kernel would not hand it out
        time.sleep(0.05)
    time.sleep(60)
    raise AssertionError(f"{len(held)} pieces of {CHUNK} bytes, and nobody minded")


def number_of(row: str) -> int:
    """The number in the answers to the row of this id: a misplaced answer shows."""
    return crc32(row.encode()) % 50


def requests_in(log: str, role: str = "synthesizer") -> list[tuple[int, str, float]]:
    """(process id, row id, Unix time) of every row that the fakes of a role were asked for, in all their lives.

    A judge logs its rows only where it is the one that dies.
    """
    found = []
    for file in Path(log).glob(f"{role}-*"):
        pid = int(file.name.rpartition("-")[2])
        found += [(pid, line.split()[0], float(line.split()[1])) for line in file.read_text().splitlines()]
    return found


def asked_at(log: str, without: Sequence[int] = ()) -> list[tuple[str, float]]:
    """(id, Unix time) of those `requests_in`, in order of time. ``without``: process ids that do not count."""
    found = [(row, at) for pid, row, at in requests_in(log) if pid not in without]
    return sorted(found, key=lambda item: item[1])


def asked_rows(log: str) -> list[str]:
    """Every id that a fake synthesizer was asked for, in all its lives."""
    return [name for name, _ in asked_at(log)]


def processes(log: str, role: str) -> list[int]:
    """Process ids of the living ``synthesizer``, ``judge`` or ``synthesizer_child`` processes, oldest first."""
    files = sorted(Path(log).glob(f"{role}-*"), key=lambda file: file.stat().st_ctime)
    found = [int(file.name.rpartition("-")[2]) for file in files]
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def turns(chat: ChatFormat, *pairs: tuple[str, str]) -> list[int]:
    """Response ids of (user text, assistant text) turns, the last one closed, without the end-of-text token."""
    ids: list[int] = []
    for index, (user, assistant) in enumerate(pairs):
        ids += [*(chat.user_open if index else ()), *chat.text_ids(user), *chat.assistant_open]
        ids += chat.text_ids(assistant)
    return [*ids, *chat.turn_end]


@cache
def task_response(chat: ChatFormat, number: int | None = None) -> tuple[int, ...]:
    """A finished, well-formed response; with ``number`` in its answers when there is one."""
    precise = "a circle" if number is None else f"circle {number}"
    pairs = (
        (hinted(HINT_PRECISE, "What is it?"), precise),
        (hinted(HINT_INFORMATIVE, "What is it?"), f"It is {precise}."),
    )
    return (*turns(chat, *pairs), chat.eos_id)


def png(red: int, green: int = 0) -> bytes:
    """A 60 x 60 image of one colour."""
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (60, 60), (red % 256, green % 256, 40)).save(sink, "PNG")
    return sink.getvalue()


def circles(rows: int) -> list[dict[str, object]]:
    """That many different pairs."""
    return [{"image": png(number, number // 256), "caption": f"circle {number}"} for number in range(rows)]


def write_ingest(run: RunFolder, rows: list[dict[str, object]]) -> Manifest:
    """A finished ingest stage with these rows ({image, caption} and optionally verdict), in one Parquet file."""
    stage = run.stage("ingest")
    stage.begin({"test": len(rows)})
    records = [
        {
            "id": record_id(row["image"], str(row["caption"]), str(number)),  # type: ignore[arg-type]
            "source": "test",
            "key": str(number),
            "verdict": "ok",
            **row,
        }
        for number, row in enumerate(rows)
    ]
    storage.make_folder(stage.place.child("data"))
    table = pa.Table.from_pylist(records, schema=RECORD_SCHEMA)
    pq.write_table(table, f"{stage.data}/part-0.parquet", filesystem=stage.fs)
    verdicts: dict[str, int] = {}
    for record in records:
        verdicts[str(record["verdict"])] = verdicts.get(str(record["verdict"]), 0) + 1
    return stage.finish(rows_in=len(records), verdicts=verdicts, seconds=0.0)


def config_for(
    output: Path | str, vlm: Path, judge: Path, engine: dict[str, object] | None = None, **synthesis: object
) -> RunConfig:
    """A run configuration with small engines and blocks; ``engine`` changes both, ``replicas`` the synthesizer's."""
    small = {"max_model_len": 256, "max_num_seqs": 16, "kv_cache_gib": 0.1, "cpus_per_replica": 1.0} | (engine or {})
    return parse_config(
        {
            "run": {"output": str(output)},
            "models": {"base": str(vlm), "synthesizer": str(vlm), "judge": str(judge)},
            "synthesis": {
                "engine": small,
                "max_new_tokens": 32,
                "rows_per_block": 10,
                **synthesis,
            },
            "judge": {"engine": small | {"replicas": 1}, "few_shot": False},
        }
    )
