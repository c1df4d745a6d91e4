"""The tables of docs/sizing.md, from the last lines of sizes, cluster_sim and driver_cost: nothing is typed by hand.

python -m benchmarks.sizing_tables          a test compares what this prints with the page
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cluster_sim import last_line

GIB, MILLION = 1 << 30, 1_000_000
Rows = list[dict[str, Any]]


def main() -> None:
    """Print all tables, each under its name."""
    for name, text in tables().items():
        print(f"@{name}@\n{text}\n")


def tables() -> dict[str, str]:
    """Markdown by name."""
    sizes, simulated = last_line("sizes"), last_line("cluster_sim")
    if sizes is None or simulated is None:
        raise SystemExit("run `python -m benchmarks.sizes` and `python -m benchmarks.cluster_sim` first")
    return {
        "SIZES": _sizes(sizes["table"]),
        "CHECK": _check(simulated["check"]),
        "SWEEP": _sweep([row for row in simulated["synthesis"] if _is(row, images=MILLION, losses_per_node_day=1.0)]),
        "LOSSES": _losses(simulated["synthesis"]),
        "BLOCKS": _blocks(simulated["blocks"]),
        "TRAINING": _training(simulated["training"]),
    }


def _is(row: dict[str, Any], **wanted: Any) -> bool:
    return all(row[key] == value for key, value in wanted.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _sizes(rows: Rows) -> str:
    head = ["images", "synthesizers + judges", "GPUs", "nodes", "CPUs per node", "object store", "/dev/shm", "disk"]
    return _table(
        [*head, "bucket", "hours", "GPU-hours", "at work", "cost"],
        [
            [
                f"{row['images']:,}",
                f"{row['synthesizers']} + {row['judges']}",
                row["gpus"],
                row["nodes"],
                row["cpus"],
                f"{row['object_store_bytes'] // GIB} GiB",
                f"{row['shm_bytes'] // GIB} GiB",
                f"{row['disk_bytes'] // GIB} GiB",
                f"{row['bucket_bytes'] / 1e12:g} TB",
                f"{row['hours']:.1f}",
                f"{row['gpu_hours']:,.0f}",
                f"{row['goodput']:.0%}",
                f"{row['cost']:,.0f}",
            ]
            for row in rows
        ],
    )


def _check(pairs: dict[str, dict[str, float]]) -> str:
    return _table(
        ["what", "real Ray", "simulated"],
        [[name.replace("_", " "), pair["measured"], pair["predicted"]] for name, pair in pairs.items()],
    )


def _sweep(rows: Rows) -> str:
    return _table(
        ["GPUs", "of them judges", "rows/s", "hours", "GPU-hours", "goodput", "machines lost", "asked again"],
        [
            [
                row["gpus"],
                row["judges"],
                row["rows_per_s"],
                row["hours"],
                f"{row['gpu_hours']:,.0f}",
                row["goodput"],
                row["losses"],
                f"{row['asked_again']:.2%}",
            ]
            for row in rows
        ],
    )


def _losses(rows: Rows) -> str:
    """Goodput: a column for each of the sweeps, a line for each number of GPUs."""
    sweeps = {
        "1,000,000, none lost": {"images": MILLION, "losses_per_node_day": 0.0},
        "1,000,000, one a day": {"images": MILLION, "losses_per_node_day": 1.0},
        "1,000,000, six a day": {"images": MILLION, "losses_per_node_day": 6.0},
        "100,000, one a day": {"images": 100_000, "losses_per_node_day": 1.0},
        "10,000,000, one a day": {"images": 10 * MILLION, "losses_per_node_day": 1.0},
    }
    found = {name: {row["gpus"]: row for row in rows if _is(row, **wanted)} for name, wanted in sweeps.items()}
    counts = sorted({row["gpus"] for row in rows})

    def cell(name: str, gpus: int) -> str:
        row = found[name].get(gpus)
        return f"{row['goodput']} ({row['hours']:g} h)" if row else ""

    return _table(["GPUs", *sweeps], [[gpus, *(cell(name, gpus) for name in sweeps)] for gpus in counts])


def _blocks(rows: Rows) -> str:
    return _table(
        ["rows per block", "GPUs", "rows/s", "driver busy", "goodput"],
        [[r["rows_per_block"], r["gpus"], r["rows_per_s"], f"{r['driver_busy']:.0%}", r["goodput"]] for r in rows],
    )


def _training(rows: Rows) -> str:
    """Hours and goodput: a line for each model and number of GPUs, a column for each number of losses."""
    losses = sorted({row["losses_per_node_day"] for row in rows})
    found = {(row["model"], row["gpus"], row["losses_per_node_day"]): row for row in rows}
    lines = dict.fromkeys((row["model"], row["gpus"]) for row in rows)
    return _table(
        ["model", "GPUs", *(f"{each:g} losses per node and day" for each in losses)],
        [
            [
                model,
                gpus,
                *(f"{found[model, gpus, n]['hours']:g} h ({found[model, gpus, n]['goodput']})" for n in losses),
            ]
            for model, gpus in lines
        ],
    )


if __name__ == "__main__":
    main()
