"""A finished ingest stage of any size for the scheduling benchmarks: small real JPEGs, all captions different.

stage = write_records(RunFolder("runs/scale"), 1_000_000)
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.record import RECORD_SCHEMA, record_id
from adamllm_ray.data.run import RunFolder

SHARD_ROWS = 8192
PICTURES = 256  # that many different images, in turn: decoding costs the same as with a million


def jpeg(number: int, side: int = 32) -> bytes:
    """A gradient; ``number`` turns it."""
    from PIL import Image

    image = Image.linear_gradient("L").resize((side, side)).rotate(number * 360 / PICTURES)
    sink = io.BytesIO()
    Image.merge("RGB", [image, image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), image]).save(sink, "JPEG")
    return sink.getvalue()


def write_records(run: RunFolder, rows: int) -> Manifest:
    """Write (or find) ``rows`` records in shards of 8,192, in constant memory."""
    stage = run.stage("ingest")
    if stage.begin({"benchmark_rows": rows}) == "finished":
        found = stage.manifest()
        assert found is not None
        return found
    Path(stage.data).mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(_shards(rows)):
        pq.write_table(pa.Table.from_pylist(shard, RECORD_SCHEMA), f"{stage.data}/part-{number:05}.parquet")
    return stage.finish(rows_in=rows, verdicts={"ok": rows}, seconds=0.0)


def _shards(rows: int) -> Iterator[list[dict[str, Any]]]:
    pictures = [jpeg(number) for number in range(PICTURES)]
    for start in range(0, rows, SHARD_ROWS):
        shard = []
        for number in range(start, min(start + SHARD_ROWS, rows)):
            image, caption = pictures[number % PICTURES], f"picture {number}"
            shard.append(
                {
                    "id": record_id(image, caption, str(number)),
                    "source": "benchmark",
                    "key": str(number),
                    "image": image,
                    "caption": caption,
                    "verdict": "ok",
                }
            )
        yield shard
