"""Throughput and goodput from 1 to 256 GPUs, predicted by two discrete-event models: simulated_synthesis, _training.

    python -m benchmarks.cluster_sim                          the paper's per-row costs; some minutes on two cores
    python -m benchmarks.cluster_sim --plan runs/mine/plan/plan.json --start-s 240 --provision-s 420

First the model is checked against what real Ray did on this machine (`check`): the last lines of
``results/synthesis_vs_loop.jsonl`` and ``results/scale.jsonl``, where they are there, with the engines they used. Then
it is asked about machines that nobody here has. Every figure of ``synthesis``, ``blocks`` and ``training`` is a
prediction; which of its inputs were measured, and where, is in ``inputs``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adamllm_ray.synthesis.graph import UNEVENNESS
from benchmarks.measure import ROOT, finish, say
from benchmarks.simulated_synthesis import Job, Lengths, Outcome, Replicas, Synthesis
from benchmarks.simulated_training import Training
from benchmarks.standin import Speed

PAPER = {"synthesizer_seconds": 1 / 2.78, "judge_seconds": 1 / 11.1}  # per row on one A100, arXiv 2411.19930 app. D
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
IMAGES = (100_000, 1_000_000, 10_000_000)
LOSSES = (0.0, 1.0, 6.0)  # of a machine with 8 GPUs, per day
MODELS = {"2B": (4.5, 2.2e9), "8B": (0.77, 8.4e9)}  # examples/s on one A100 and parameters; the paper, table 11
DRIVER_S = 0.02  # where driver_cost.py has not run
SAVED_BYTES, STORE_BYTES_S = 14, 2e9  # per parameter of a checkpoint (bf16, fp32 copy, two moments); of all uploads


@dataclass(frozen=True)
class Costs:
    """Inputs of a prediction, in seconds: per row of one GPU, and of machines."""

    synthesizer_s: float
    judge_s: float
    driver_s: float
    start_s: float
    provision_s: float


def main() -> None:
    """Check, predict, print the line."""
    options = _options()
    costs = _costs(options)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        sweeps = {"synthesis": list(synthesis_sweep(costs, pool)), "blocks": list(block_sweep(costs, pool))}
    finish(
        "cluster_sim",
        {
            "inputs": {**vars(costs), "from": options.plan.name if options.plan else "paper, one A100"},
            "check": {**checked_loop(costs), **checked_scale(costs)},
            **sweeps,
            "training": list(training_sweep(costs)),
        },
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, help="plan.json of `adamllm plan`, for replicas of one GPU")
    parser.add_argument("--start-s", type=float, default=180.0, help="from a machine to replicas that answer")
    parser.add_argument("--provision-s", type=float, default=300.0, help="from asking for a machine to having it")
    return parser.parse_args()


def _costs(options: argparse.Namespace) -> Costs:
    probe = json.loads(options.plan.read_text("utf-8"))["probe"] if options.plan else PAPER
    measured = last_line("driver_cost")
    driver_s = measured["driver_s_per_block"] if measured else DRIVER_S
    return Costs(probe["synthesizer_seconds"], probe["judge_seconds"], driver_s, options.start_s, options.provision_s)


def last_line(name: str, key: str = "") -> dict[str, Any] | None:
    """Metrics of the last line of a benchmark's results, if it has run; of the last one with ``key``."""
    path = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    found: list[dict[str, Any]] = [json.loads(line)["metrics"] for line in lines]
    return next((metrics for metrics in reversed(found) if not key or key in metrics), None)


def checked_loop(costs: Costs) -> dict[str, Any]:
    """The graph's half of synthesis_vs_loop.py: 7 synthesizers and a judge, lengths of a heavy tail."""
    measured, speed = last_line("synthesis_vs_loop"), Speed()
    if measured is None:
        return {}
    lengths = Lengths(Lengths(1.0).relative_mean * speed.median_tokens * speed.step_s)
    job = Job(
        measured["rows"],
        Replicas(7, lengths, 256, prepare_s=speed.prepare_s, unevenness=UNEVENNESS),
        Replicas(1, Lengths(speed.judge_s, sigma=0.0), 256),
        driver_s=costs.driver_s,
        write_s=0.05,
        writers=3,
    )
    found, (run, *_) = Synthesis(job).run(), measured["runs"]["graph"]
    return {
        "loop_rows_per_s": _pair(measured["rows_per_s"]["graph"], found.rows_per_s),
        "loop_first_row_s": _pair(measured["first_kept_row_s"]["graph"], found.first_row_s),
        "loop_synthesizer_slots_idle": _pair(
            sum(run["synthesizer_slots_idle"]) / len(run["synthesizer_slots_idle"]), found.idle[0]
        ),
        "loop_judge_slots_idle": _pair(run["judge_slots_idle"][0], found.idle[1]),
    }


def checked_scale(costs: Costs) -> dict[str, Any]:
    """The weak-scaling half of scale.py: one replica a node, 64 slots, eight seconds a row, no tail."""
    measured = last_line("scale", "weak_rows_per_s_per_node")  # its halves can be run alone
    if measured is None:
        return {}
    rates = {int(nodes): found for nodes, found in measured["weak_rows_per_s_per_node"].items()}
    predicted = {}
    for nodes in rates:
        job = Job(
            measured["weak_rows_per_node"] * nodes,
            Replicas(nodes, Lengths(8.0, sigma=0.0), 64, unevenness=UNEVENNESS),
            Replicas(1, Lengths(0.1, sigma=0.0), 64),
            driver_s=costs.driver_s,
            write_s=0.05,
            writers=max(2, nodes * 2 // 4),
        )
        predicted[nodes] = Synthesis(job).run().rows_per_s / nodes
    return {
        f"scale_rows_per_s_per_node_{nodes}": _pair(sorted(found)[len(found) // 2], predicted[nodes])
        for nodes, found in rates.items()
    }


def _pair(measured: float, predicted: float) -> dict[str, float]:
    return {"measured": round(measured, 3), "predicted": round(predicted, 3)}


def job_for(costs: Costs, gpus: int, rows: int, **more: Any) -> Job:
    """Both pools on so many GPUs, one GPU a replica, split so that both are busy; one GPU is shared by both."""
    if gpus == 1:
        together = costs.synthesizer_s + costs.judge_s
        return _job(replace(costs, synthesizer_s=together, judge_s=together), 1, 1, rows, 0.5, more)
    share = costs.judge_s / (costs.synthesizer_s + costs.judge_s)
    choices = {max(1, min(gpus - 1, judges)) for judges in (math.floor(gpus * share), math.ceil(gpus * share))}
    judges = max(choices, key=lambda many: min((gpus - many) / costs.synthesizer_s, many / costs.judge_s))
    return _job(costs, gpus - judges, judges, rows, 1.0, more)


def _job(costs: Costs, synthesizers: int, judges: int, rows: int, gpus: float, more: Mapping[str, Any]) -> Job:
    slots = 256
    settings = {"driver_s": costs.driver_s, "start_s": costs.start_s, "provision_s": costs.provision_s}
    return Job(
        rows,
        Replicas(synthesizers, Lengths(costs.synthesizer_s * slots), slots, gpus, unevenness=UNEVENNESS),
        Replicas(judges, Lengths(costs.judge_s * slots, sigma=0.0), slots, gpus),
        **(settings | {"writers": max(2, 4 * (synthesizers + judges))} | dict(more)),
    )


def synthesis_sweep(costs: Costs, pool: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """Every number of GPUs for a million images, with and without losses; the corners for the other sizes."""
    cases = [
        (rows, losses, gpus)
        for rows in reversed(IMAGES)  # the long ones first
        for losses in (LOSSES if rows == 1_000_000 else (1.0,))
        for gpus in (GPUS if rows == 1_000_000 else GPUS[3::2] if rows > 1_000_000 else GPUS[::2])
    ]
    jobs = [job_for(costs, gpus, rows, losses_per_node_day=losses) for rows, losses, gpus in cases]
    words = [f"{rows} images, {gpus} GPUs, {losses:g} losses" for rows, losses, gpus in cases]
    for (rows, losses, gpus), job, found in zip(cases, jobs, pool.map(_timed, words, jobs), strict=True):
        yield {
            "images": rows,
            "gpus": gpus,
            "judges": job.judges.count,
            "losses_per_node_day": losses,
            "hours": round(found.seconds / 3600, 2),
            **_shown(found),
        }


def block_sweep(costs: Costs, pool: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    """How large blocks must be for one driver to keep 256 faster GPUs busy: 8 pairs/s and 100 prompts/s of each."""
    fast = replace(costs, synthesizer_s=1 / 8, judge_s=1 / 100)
    cases = [(rows_per_block, gpus) for rows_per_block in (16, 64, 256) for gpus in (64, 256)]
    jobs = [
        job_for(fast, gpus, 1_000_000, rows_per_block=rows_per_block, losses_per_node_day=1.0)
        for rows_per_block, gpus in cases
    ]
    words = [f"blocks of {rows_per_block}, {gpus} GPUs" for rows_per_block, gpus in cases]
    for (rows_per_block, gpus), found in zip(cases, pool.map(_timed, words, jobs), strict=True):
        yield {"rows_per_block": rows_per_block, "gpus": gpus, "driver_busy": found.driver_busy, **_shown(found)}


def _timed(words: str, job: Job) -> Outcome:
    started = time.monotonic()
    found = Synthesis(job).run()
    say(f"{words}: {found.rows_per_s:.1f} rows/s, goodput {found.goodput:.3f} ({time.monotonic() - started:.0f} s)")
    return found


def _shown(found: Outcome) -> dict[str, Any]:
    return {
        "rows_per_s": round(found.rows_per_s, 2),
        "steady_rows_per_s": round(found.steady_rows_per_s, 2),
        "goodput": round(found.goodput, 3),
        "asked_again": round(found.asked_again, 5),
        "losses": found.losses,
        "gpu_hours": round(found.gpu_hours, 1),
    }


def training_sweep(costs: Costs) -> Iterator[dict[str, Any]]:
    """Two epochs of a million records, batches of 128 at most 16 GPUs, of 8 a GPU above; a checkpoint every 10 min."""
    for model, (per_gpu, parameters) in MODELS.items():
        save_s = SAVED_BYTES * parameters / STORE_BYTES_S
        for gpus in GPUS[3:]:
            batch = max(128, 8 * gpus)
            step_s = batch / (per_gpu * gpus)
            for losses in LOSSES:
                training = Training(
                    steps=2_000_000 // batch,
                    step_s=step_s,
                    checkpoint_every=max(1, round(600 / step_s)),
                    save_s=save_s,
                    nodes=math.ceil(gpus / 8),
                    start_s=costs.start_s,
                    provision_s=costs.provision_s,
                    losses_per_node_day=losses,
                )
                seconds, again = training.run()
                useful = training.steps * step_s
                yield {
                    "model": model,
                    "gpus": gpus,
                    "losses_per_node_day": losses,
                    "hours": round(seconds / 3600, 2),
                    "goodput": round(useful / seconds, 3),
                    "steps": training.steps,
                    "steps_again": again,
                }


if __name__ == "__main__":
    main()
