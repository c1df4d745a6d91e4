"""Our streaming graph against the usual loop, on stand-in engines: what scheduling alone is worth.

    python -m benchmarks.synthesis_vs_loop [--rows 24000] [--repeats 2]        25 minutes

The loop is our own re-implementation of how such jobs are usually written: the rows are dealt to 8 processes before
the start, each gives its engine 500 rows and waits for the slowest of them before it takes the next 500, and judging
begins when all synthesis is done. Row work (decoding, prompts, parsing, judge prompts) is the same code in both.
Both have 8 replicas: the loop uses all 8 for both phases, the graph has 7 synthesizers and 1 judge at the same time.
The engines sleep (see standin.py); start-up is excluded on both sides. A B A B; the speed-up is the ratio of medians.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.models.checkpoint import resolve_model
from benchmarks.measure import finish, say
from benchmarks.records import write_records
from benchmarks.standin import Gate, StandinMaker

REPLICAS, JUDGES, CHUNK = 8, 1, 500
SLOTS = 256  # vLLM's default max_num_seqs


def main() -> None:
    """Run both, interleaved, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", default="runs/synthesis_vs_loop")
    options = parser.parse_args()
    folder = Path(options.folder)
    shutil.rmtree(folder, ignore_errors=True)
    found: dict[str, list[dict[str, Any]]] = {"graph": [], "loop": []}
    for number in range(options.repeats):
        for name, contestant in (("graph", graph), ("loop", loop)):
            found[name].append(contestant(folder / f"{name}{number}", options.rows))
            say(f"{name}: {found[name][-1]} (load {os.getloadavg()[0]:.1f})")
    rates = {name: statistics.median(one["rows_per_s"] for one in runs) for name, runs in found.items()}
    first = {name: statistics.median(one["first_kept_row_s"] for one in runs) for name, runs in found.items()}
    finish(
        "synthesis_vs_loop",
        {
            "speedup": rates["graph"] / rates["loop"],
            "rows": options.rows,
            "rows_per_s": rates,
            "first_kept_row_s": first,
            "first_kept_row_ratio": first["loop"] / first["graph"],
            "runs": found,
        },
    )


def configuration(output: Path) -> RunConfig:
    """Pocket models for their tokenizers; the paper's 512 new tokens."""
    engine = {"max_num_seqs": SLOTS, "cpus_per_replica": 1.0}
    return parse_config(
        {
            "run": {"output": str(output)},
            "synthesis": {"engine": engine | {"replicas": REPLICAS - JUDGES}, "rows_per_block": 64},
            "judge": {"engine": engine | {"replicas": JUDGES}, "few_shot": False},
        }
    )


def graph(folder: Path, rows: int) -> dict[str, Any]:
    """Our graph, on a local Ray."""
    import ray

    from adamllm_ray.ray_runtime import prepare_environment
    from adamllm_ray.synthesis.pipeline import synthesize

    prepare_environment()
    run = RunFolder(str(folder))
    write_records(run, rows)
    ray.init(address="local", num_cpus=REPLICAS + 6, include_dashboard=False, log_to_driver=False)
    synthesize(configuration(folder), run, engine_maker=StandinMaker(str(folder / "engines"), REPLICAS))
    ray.shutdown()
    written = [file.stat().st_mtime for file in Path(run.stage("synthesize").data).glob("*.parquet")]
    return figures(folder, rows, min(written), max(written))


def loop(folder: Path, rows: int) -> dict[str, Any]:
    """The usual loop: one process per replica, each with its own shard; all judge when all have written."""
    write_records(RunFolder(str(folder)), rows)
    (folder / "tasks").mkdir()
    (folder / "judged").mkdir()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(REPLICAS)
    workers = [context.Process(target=worker, args=(str(folder), rank, barrier)) for rank in range(REPLICAS)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
        assert process.exitcode == 0
    written = [file.stat().st_mtime for file in (folder / "judged").glob("*.parquet")]
    assert pads.dataset(folder / "judged", format="parquet").count_rows() == rows
    return figures(folder, rows, min(written), max(written))


def worker(folder: str, rank: int, barrier: Any) -> None:
    """One replica of the loop: synthesize all of its shard, wait for the others, judge all of it."""
    from adamllm_ray.synthesis.actors import Judge, Synthesizer

    config = configuration(Path(folder))
    maker = StandinMaker(f"{folder}/engines", 2 * REPLICAS)
    synthesizer = Synthesizer(
        model=resolve_model(config.models.synthesizer),
        settings=config.synthesis,
        limits=config.data.images,
        seed=0,
        engine_maker=maker,
    )
    judge = Judge(
        model=resolve_model(config.models.judge),
        settings=config.judge,
        max_failed_share=1.0,
        engine_maker=maker,
    )
    everything = pads.dataset(f"{folder}/ingest/data", format="parquet").to_table()
    shard = everything.take(list(range(rank, everything.num_rows, REPLICAS)))
    asyncio.run(phase(synthesizer, shard, f"{folder}/tasks/{rank}"))
    barrier.wait()
    tasks = pads.dataset([str(file) for file in sorted(Path(folder, "tasks").glob(f"{rank}-*"))]).to_table()
    asyncio.run(phase(judge, tasks, f"{folder}/judged/{rank}"))


async def phase(step: Any, table: pa.Table, prefix: str) -> None:
    """500 rows, wait for all of them, write them, next 500."""
    for start in range(0, table.num_rows, CHUNK):
        pq.write_table(await step(table.slice(start, CHUNK)), f"{prefix}-{start:06}.parquet")


def figures(folder: Path, rows: int, first: float, last: float) -> dict[str, Any]:
    """Rates and idle shares between the moment all replicas are up and the last row on disk."""
    gate = Gate(folder / "engines", 0)
    start = gate.opened_at()
    used = [gate.usage(role) for role in ("synthesizer", "judge")]
    return {
        "rows_per_s": rows / (last - start),
        "first_kept_row_s": first - start,
        "seconds": last - start,
        "synthesizer_slots_idle": [round(1 - one["slot_seconds"] / SLOTS / (last - start), 3) for one in used[0]],
        "synthesizer_idle": [round(1 - one["busy_seconds"] / (last - start), 3) for one in used[0]],
        "judge_slots_idle": [round(1 - one["slot_seconds"] / SLOTS / (last - start), 3) for one in used[1]],
    }


if __name__ == "__main__":
    main()
