"""What Ray and our graph cost: rows/s of the whole streaming graph against the engines' own ceiling. Real vLLM on CPU.

    python -m benchmarks.synthesis_overhead [--rows 2000] [--rounds 2] [--served]

Graph: `adamllm synthesize` with the pocket models (read, decode, prompt, synthesizer, parse, judge, write) in Ray.
Ceiling: the same prompts, prepared beforehand, straight into the same two engines in two plain processes that run at
the same time. Both have one thread per engine, both start with warm engines. The graph's clock starts when the first
batch reaches an engine (the start of Ray's reading processes is start-up) and stops when the last Parquet file is
written. ``ceiling_ratio`` = graph rows/s / ceiling rows/s. ``engine_cpu_ms_per_row`` is what the processes that hold
the engines spent (their cores not, with ``--served``), which, unlike rows/s, hardly depends on what else the machine
does.

Without a GPU vLLM's core runs in the replica's own process, beside Ray's threads and ours, in both arms. ``--served``
puts it into a process of its own, as it is on a GPU, also in both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamllm_ray.config import EngineSection, RunConfig, load_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.synthesis.engine import Completion, Engine, Request, SamplingSpec
from benchmarks.measure import ROOT, finish, interleaved, last_json, median, say

POOLS = {"synthesizer": True, "judge": False}  # and whether requests carry an image
PAUSE_S = 5.0  # between two writes of an engine's figures
START_LIMIT_S = 600


def main() -> None:
    """Run both in turn, each in a process of its own, and print the line."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="overhead-"))
    try:
        if options.arm:
            arm = {"graph": graph, "ceiling": ceiling}[options.arm]
            print(json.dumps(arm(options.rows, Path(options.folder), options.served)))
            return
        _measure(options.rows, options.rounds, folder, options.served)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--served", action="store_true", help="vLLM's core in a process of its own")
    parser.add_argument("--arm", choices=["graph", "ceiling"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(rows: int, rounds: int, folder: Path, served: bool) -> None:
    from adamllm_ray.data.ingest import ingest

    config = config_for(rows, folder / "run")
    ingest(config, RunFolder(config.run.output))
    found: dict[str, list[dict[str, Any]]] = {"graph": [], "ceiling": []}

    def arm(name: str) -> float:
        if name == "graph":
            shutil.rmtree(folder / "run" / "synthesize", ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.synthesis_overhead",
            "--arm",
            name,
            "--rows",
            str(rows),
            "--folder",
            str(folder),
            *(["--served"] if served else []),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name].append(last_json(done.stdout))
        return rows / float(found[name][-1]["seconds"])

    rates = interleaved({"graph": lambda: arm("graph"), "ceiling": lambda: arm("ceiling")}, rounds)
    finish(
        "synthesis_overhead",
        {
            "ceiling_ratio": median(rates["graph"]) / median(rates["ceiling"]),
            "rows": rows,
            "served": served,
            "graph_rows_per_s": [round(rate, 2) for rate in rates["graph"]],
            "ceiling_rows_per_s": [round(rate, 2) for rate in rates["ceiling"]],
            "engine_cpu_ms_per_row": {
                name: round(1000 * median([one["cpu"] for one in runs]) / rows, 2) for name, runs in found.items()
            },
            "generated_tokens": {name: runs[-1]["generated_tokens"] for name, runs in found.items()},
            "synthesizer_steps": {name: [one["steps"] for one in runs] for name, runs in found.items()},
            "synthesizer_ms_per_step": {
                name: [round(1000 * one["stepping"] / max(1, one["steps"]), 2) for one in runs]
                for name, runs in found.items()
            },
            "synthesizer_idle_s": {
                name: [round(one["seconds"] - one["stepping"], 2) for one in runs] for name, runs in found.items()
            },
            "judged_rows": found["ceiling"][-1]["judged_rows"],
        },
    )


def config_for(rows: int, output: Path) -> RunConfig:
    """The quickstart's synthesis with as many rows as asked for."""
    return load_config(ROOT / "jobs" / "configs" / "quickstart.yaml", [f"run.output={output}", f"data.limit={rows}"])


def graph(rows: int, folder: Path, served: bool) -> dict[str, Any]:
    """Seconds of `synthesize` from the first batch at an engine to the last file."""
    from adamllm_ray.synthesis.pipeline import synthesize

    config = config_for(rows, folder / "run")
    marks = Path(tempfile.mkdtemp(dir=folder))
    synthesize(config, RunFolder(config.run.output), engine_maker=WarmTogether(str(marks), served))
    started = min(path.stat().st_mtime for path in marks.glob("*.first"))
    written = max(path.stat().st_mtime for path in (folder / "run" / "synthesize" / "data").rglob("*.parquet"))
    spent = [json.loads(path.read_text()) for path in marks.glob("*.spent")]
    return {
        "seconds": written - started,
        "generated_tokens": sum(one["tokens"] for one in spent),
        "cpu": sum(one["cpu"] for one in spent),
        **json.loads((marks / "synthesizer.spent").read_text())["steps"],
    }


@dataclass(frozen=True)
class WarmTogether:
    """Engine maker: the real engine, but nobody gets one before all are warm."""

    marks: str
    served: bool

    def __call__(self, model: str, settings: EngineSection, images: bool) -> CountingEngine:
        engine = CountingEngine(model, settings, images=images, in_process=not self.served)
        with ThreadPoolExecutor(1) as thread:  # the actor's own thread may have a running event loop
            thread.submit(lambda: asyncio.run(warm(engine, images))).result()
        engine.steps = Steps(engine)
        engine.count_into(Path(self.marks) / f"{'synthesizer' if images else 'judge'}.warm", len(POOLS))
        return engine


class Steps:
    """How many steps vLLM's core took, and the seconds in them: fewer rows at a time mean more steps for the same work.

    Counted from now on, and only where the core is in this process.
    """

    def __init__(self, engine: Engine) -> None:
        self.steps, self.stepping = 0, 0.0
        core: Any = getattr(engine._core, "_engine", None)
        inner = getattr(core, "step", None)
        if inner is None:
            return

        def step() -> Any:
            began = time.perf_counter()
            outputs = inner()
            self.steps += 1
            self.stepping += time.perf_counter() - began
            return outputs

        core.step = step

    def report(self) -> dict[str, Any]:
        """Both, under their names."""
        return {"steps": self.steps, "stepping": self.stepping}


class CountingEngine(Engine):
    """The engine, with the time of its first row, and its tokens and CPU seconds in a file: now and then, because a
    write takes milliseconds, and whenever it has nothing to do, so at the end.
    """

    steps: Steps
    _mark: Path | None = None
    _before = 0
    _cpu_before = 0.0
    _written = 0.0

    def count_into(self, mark: Path, engines: int) -> None:
        """Say that this one is warm and wait for the others."""
        self._mark, self._before = mark, self.meters.totals["generated_tokens"]
        mark.touch()
        deadline = time.monotonic() + START_LIMIT_S
        while len(list(mark.parent.glob("*.warm"))) < engines and time.monotonic() < deadline:
            time.sleep(0.1)

    async def generate(self, requests: Sequence[Request], sampling: SamplingSpec) -> list[Completion]:
        if self._mark is not None and not self._written:
            self._mark.with_suffix(".first").touch()
            self._cpu_before, self._written = time.process_time(), time.monotonic()
        done = await super().generate(requests, sampling)
        idle = not self.meters.totals["in_flight"]
        if self._mark is not None and (idle or time.monotonic() > self._written + PAUSE_S):
            tokens = self.meters.totals["generated_tokens"] - self._before
            cpu = time.process_time() - self._cpu_before
            spent = {"tokens": tokens, "cpu": cpu, "steps": self.steps.report()}
            self._mark.with_suffix(".spent").write_text(json.dumps(spent))
            self._written = time.monotonic()
        return done


def ceiling(rows: int, folder: Path, served: bool) -> dict[str, Any]:
    """Seconds that the slower of the two engines takes for all its prompts, both working at the same time."""
    config = config_for(rows, folder / "run")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(POOLS))
    results: Any = context.Queue()
    workers = [context.Process(target=_engine_alone, args=(name, config, barrier, results, served)) for name in POOLS]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=3600) for _ in workers)
    for worker in workers:
        worker.join()
    return {
        "seconds": max(one["end"] for one in found.values()) - min(one["start"] for one in found.values()),
        "generated_tokens": sum(one["tokens"] for one in found.values()),
        "cpu": sum(one["cpu"] for one in found.values()),
        "judged_rows": found["judge"]["requests"],
        **found["synthesizer"]["steps"],
    }


def _engine_alone(name: str, config: RunConfig, barrier: Any, results: Any, served: bool) -> None:
    requests, sampling, model = _synthesizer_work(config) if POOLS[name] else _judge_work(config)
    settings = (config.synthesis if POOLS[name] else config.judge).engine
    engine = Engine(model, settings, images=POOLS[name], in_process=not served)

    async def work() -> None:
        await warm(engine, POOLS[name])
        steps = Steps(engine)
        before = engine.meters.totals["generated_tokens"]
        await asyncio.to_thread(barrier.wait, START_LIMIT_S)
        start, cpu = time.time(), time.process_time()
        completions = await engine.generate(requests, sampling)
        end, cpu = time.time(), time.process_time() - cpu
        failed = [one.error for one in completions if one.error]
        if failed:
            raise RuntimeError(failed[0])
        tokens = engine.meters.totals["generated_tokens"] - before
        figures = {"start": start, "end": end, "cpu": cpu, "tokens": tokens, "requests": len(requests)}
        results.put((name, figures | {"steps": steps.report()}))

    asyncio.run(work())
    engine.close()


def _synthesizer_work(config: RunConfig) -> tuple[list[Request], SamplingSpec, str]:
    import pyarrow.dataset as pads

    from adamllm_ray.data.images import decode
    from adamllm_ray.models.checkpoint import resolve_model
    from adamllm_ray.synthesis.actors import load_chat
    from adamllm_ray.synthesis.prompts import synthesis_prompt
    from adamllm_ray.synthesis.triplets import TripletParser

    model = resolve_model(config.models.synthesizer)
    chat = load_chat(model)
    rows = pads.dataset(RunFolder(config.run.output).stage("ingest").data).to_table().to_pylist()
    requests = [
        Request(row["id"], synthesis_prompt(chat, row["caption"]), decode(row["image"], config.data.images))
        for row in rows
        if row["verdict"] == "ok"
    ]
    stop = (TripletParser(chat).end_id,)
    return requests, SamplingSpec(config.synthesis.max_new_tokens, stop_token_ids=stop), model


def _judge_work(config: RunConfig) -> tuple[list[Request], SamplingSpec, str]:
    import pyarrow.dataset as pads
    from transformers import AutoTokenizer

    from adamllm_ray.models.checkpoint import resolve_model
    from adamllm_ray.synthesis.consistency import judge_prompt, label_ids

    model = resolve_model(config.models.judge)
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    columns = ["id", "instruction", "informative", "precise", "judge_yes"]
    rows = pads.dataset(RunFolder(config.run.output).stage("synthesize").data).to_table(columns=columns).to_pylist()
    requests = [
        Request(
            row["id"],
            judge_prompt(tokenizer, row["instruction"], row["informative"], row["precise"], config.judge.few_shot),
        )
        for row in rows
        if row["judge_yes"] is not None
    ]
    allowed = tuple(label_ids(tokenizer).values())
    return requests, SamplingSpec(1, allowed_token_ids=allowed, logprobs=len(allowed)), model


async def warm(engine: Engine, images: bool) -> None:
    """A few requests, so that nobody pays for first-time work inside the clock."""
    from PIL import Image

    from adamllm_ray.models.chat import ChatFormat
    from adamllm_ray.models.checkpoint import resolve_model
    from adamllm_ray.synthesis.actors import load_chat
    from adamllm_ray.synthesis.prompts import synthesis_prompt

    chat: ChatFormat | None = load_chat(resolve_model("pocket:synthesizer")) if images else None
    picture = Image.new("RGB", (60, 60)) if images else None
    ids = synthesis_prompt(chat, "a field") if chat else [1, 20, 21]
    await engine.generate([Request(str(n), ids, picture) for n in range(8)], SamplingSpec(8))


if __name__ == "__main__":
    say(f"load average {os.getloadavg()}")
    main()
