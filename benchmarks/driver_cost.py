"""What a block costs the driver, and what an image costs a replica's CPU: two inputs of cluster_sim.py and of sizing.

    python -m benchmarks.driver_cost [--rows 12800]           three minutes

The driver is the one process that a larger cluster does not have more of. It runs the graph of synthesis over real
raylets with engines that sleep (scale.py's), so that it has little else to do; counted is its own processor time,
between a fifth and all of the blocks, which a busy machine changes little. ``blocks_per_s_limit`` is what one core
could do. An image is decoded and cut into a LLaVA-NeXT's tiles by one thread, again in processor time.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from adamllm_ray.data.run import RunFolder
from benchmarks.measure import finish, say
from benchmarks.records import write_records

ROWS_PER_BLOCK = 64  # as scale.py has it
NODES = 2
PICTURE = (1024, 768)  # pixels


def main() -> None:
    """Measure both and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_800)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--folder", default="runs/driver_cost")
    options = parser.parse_args()
    folder = Path(options.folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    images = image_cost(options.images)
    say(f"an image: {images}")
    finish("driver_cost", {**driver_cost(folder, options.rows), **images})


def driver_cost(folder: Path, rows: int) -> dict[str, Any]:
    """Processor time of the driver over the blocks done."""
    import numpy as np
    import psutil

    from benchmarks.scale import QUICK, Driver, cluster

    write_records(RunFolder(str(folder)), rows)
    seen: list[tuple[float, float]] = []  # (blocks, processor seconds)
    with cluster(NODES) as address:
        driver = Driver(folder, NODES, QUICK, address, 0)
        process = psutil.Process(driver.process.pid)
        while (done := driver.done()) < rows:
            times = process.cpu_times()
            seen.append((done / ROWS_PER_BLOCK, times.user + times.system))
            time.sleep(0.5)
        driver.end()
    used = np.array([point for point in seen if point[0] >= 0.2 * rows / ROWS_PER_BLOCK])
    seconds = float(np.polyfit(used[:, 0], used[:, 1], 1)[0])
    return {
        "driver_s_per_block": seconds,
        "blocks_per_s_limit": 1 / seconds,
        "rows": rows,
        "rows_per_block": ROWS_PER_BLOCK,
        "nodes": NODES,
        "samples": len(used),
    }


def image_cost(images: int) -> dict[str, Any]:
    """Processor seconds of one thread for one photograph: header check and decoding, then the processor's tiles."""
    import torch
    from PIL import Image
    from transformers import LlavaNextImageProcessor

    from adamllm_ray.config import ImageLimits
    from adamllm_ray.data.images import decode

    torch.set_num_threads(1)
    sink = io.BytesIO()
    Image.effect_noise(PICTURE, 40).convert("RGB").save(sink, "JPEG", quality=85)
    data, processor, limits = sink.getvalue(), LlavaNextImageProcessor(), ImageLimits()
    decoding, tiling = [], []
    for _ in range(images):
        begun = time.process_time()
        image = decode(data, limits)
        decoded = time.process_time()
        processor(image, return_tensors="pt")
        decoding.append(decoded - begun)
        tiling.append(time.process_time() - decoded)
    return {
        "decode_s": statistics.median(decoding),
        "tiles_s": statistics.median(tiling),
        "picture": PICTURE,
        "picture_bytes": len(data),
    }


if __name__ == "__main__":
    main()
