"""Ingest: rows per second, what overlapping buys, and what a row costs in memory.

    python -m benchmarks.ingest            about three minutes on two cores

* `thread_speedup`: real JPEGs from disk, decoded by one thread and by as many as there are cores.
* `overlap_speedup`: the same JPEGs when each takes 40 ms to arrive (a stand-in for an object store: it sleeps), read by
  32 threads beside the decoding ones, against being read by the decoding threads.
* `duplicate_bytes_per_row`: memory of the exact index over a million rows. `near_bytes_per_original`,
  `near_lookup_us_3` and `near_lookup_us_7`: the perceptual index with 400,000 random hashes, distances 3 and 7.
"""

from __future__ import annotations

import io
import json
import random
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adamllm_ray.config import parse_config
from adamllm_ray.data import ingest as module
from adamllm_ray.data.duplicates import Duplicates, NearHashes
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.sources import RawPair
from benchmarks.measure import finish, interleaved, median, say

ROWS, IMAGES, SIZE = 400, 40, (1024, 768)
LATENCY_S = 0.04
CORES = module.THREADS


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jpegs = write_source(folder)
        say(f"{ROWS} rows, JPEGs of {sum(map(len, jpegs)) // len(jpegs)} bytes")
        local = interleaved(
            {"one": lambda: rate(folder, 1), "all": lambda: rate(folder, CORES)},
            rounds=3,
        )
        far = [RawPair("far", str(n), delayed(jpegs[n % IMAGES]), f"Caption {n}.") for n in range(ROWS)]
        remote = interleaved(
            {
                "mixed": lambda: far_rate(folder, far, CORES),
                "apart": lambda: far_rate(folder, far, module.REMOTE_READERS),
            },
            rounds=3,
        )
    finish(
        "ingest",
        {
            "rows_per_s": median(local["all"]),
            "threads": CORES,
            "thread_speedup": median(local["all"]) / median(local["one"]),
            "rows_per_s_40ms": median(remote["apart"]),
            "overlap_speedup": median(remote["apart"]) / median(remote["mixed"]),
            **near_figures(),
            "duplicate_bytes_per_row": exact_bytes_per_row(1_000_000),
        },
    )


def write_source(folder: Path) -> list[bytes]:
    draw, jpegs = np.random.default_rng(0), []
    for number in range(IMAGES):
        blocks = Image.fromarray(draw.integers(0, 256, (48, 64, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        blocks.save(buffer, "JPEG", quality=90)
        jpegs.append(buffer.getvalue())
        (folder / f"{number}.jpg").write_bytes(jpegs[-1])
    lines = [{"image": f"{n % IMAGES}.jpg", "caption": f"Caption {n}."} for n in range(ROWS)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return jpegs


def delayed(data: bytes) -> Callable[[], bytes]:
    def load() -> bytes:
        time.sleep(LATENCY_S)
        return data

    return load


def rate(folder: Path, threads: int) -> float:
    """Rows per second of a whole ingest, manifest and checksums included."""
    module.THREADS = threads
    with tempfile.TemporaryDirectory() as output:
        config = parse_config({"run": {"output": output}, "data": {"path": str(folder)}})
        started = time.perf_counter()
        manifest = module.ingest(config, RunFolder(output))
        module.THREADS = CORES
        if manifest.kept != ROWS:
            raise RuntimeError(manifest.verdicts)
        return ROWS / (time.perf_counter() - started)


def far_rate(folder: Path, pairs: list[RawPair], readers: int) -> float:
    """The same with a source whose images take their time; ``readers`` threads wait for them."""
    real, known = module.sources.read_pairs, module.LOCAL_READERS

    def far(data: Any, ignored: Any) -> Iterator[RawPair]:
        return iter(pairs)

    module.sources.read_pairs, module.LOCAL_READERS = far, readers
    try:
        return rate(folder, CORES)
    finally:
        module.sources.read_pairs, module.LOCAL_READERS = real, known


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def exact_bytes_per_row(rows: int) -> float:
    duplicates, before = Duplicates(), memory()
    for number in range(rows):
        row = {"source": "s", "key": str(number), "image": b"", "caption": str(number), "verdict": "ok"}
        duplicates.mark(row, None)
    return (memory() - before) / rows


def near_figures(originals: int = 400_000) -> dict[str, float]:
    draw, found = random.Random(0), {}
    for distance in (3, 7):
        tracemalloc.start()
        index = NearHashes(distance)
        for number in range(originals):
            index.add(draw.getrandbits(64), number.to_bytes(16, "big"))
        found["near_bytes_per_original"] = tracemalloc.get_traced_memory()[0] / originals
        tracemalloc.stop()
        started = time.process_time()
        for _ in range(500):
            index.nearest(draw.getrandbits(64))
        found[f"near_lookup_us_{distance}"] = (time.process_time() - started) / 500 * 1e6
    return found


if __name__ == "__main__":
    main()
