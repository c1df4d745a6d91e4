"""What `adamllm size` says of 100,000, a million and ten million images: the table of docs/sizing.md. Sums, no run.

    python -m benchmarks.sizes

Speeds are the paper's per row on one A100 (cluster_sim.py has them), in place of a plan of yours; size of a row, price,
losses and times to start are assumptions, and in the line.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.synthesis.sizing import Needs, Speed, Target, reckon
from benchmarks.cluster_sim import IMAGES, PAPER
from benchmarks.measure import finish

HOURS = {100_000: (2.0, 6.0), 1_000_000: (6.0, 24.0), 10_000_000: (24.0, 72.0)}
SLOTS, ROW_BYTES = 256, 200_000
PRICE, LOSSES, START_S, PROVISION_S = 2.5, 1.0, 180.0, 300.0


def main() -> None:
    """Print the line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    assumed = {
        "slots": SLOTS,
        "row_bytes": ROW_BYTES,
        "price": PRICE,
        "losses_per_node_day": LOSSES,
        "start_s": START_S,
        "provision_s": PROVISION_S,
    }
    table = [shown(images, needs(images, hours)) for images in IMAGES for hours in HOURS[images]]
    finish("sizes", {"speeds": PAPER, "assumed": assumed, "table": table})


def needs(images: int, hours: float) -> Needs:
    """The sums of `adamllm size` for replicas of one GPU each, on nodes of eight."""
    plan = {"probe": PAPER | {"start_seconds": START_S}, "output_bytes": ROW_BYTES, "rows": 1}
    config = _config()
    target = Target(images, hours, price=PRICE, losses=LOSSES, provision_s=PROVISION_S)
    return reckon(config, Speed.of(plan, config), target)


def shown(images: int, found: Needs) -> dict[str, Any]:
    """One row of the table."""
    row = asdict(found)
    rounded = {name: round(row[name], 3) for name in ("hours", "gpu_hours", "goodput", "cost")}
    return {"images": images} | row | rounded


def _config() -> RunConfig:
    engine = {"gpus_per_replica": 1, "max_num_seqs": SLOTS}
    return parse_config({"run": {"output": "x"}, "synthesis": {"engine": engine}, "judge": {"engine": engine}})


if __name__ == "__main__":
    main()
