"""Our synthesizer pool against plain ``ray.data.llm``: rows/s, bytes through the object store, and one bad image.

    python -m benchmarks.against_ray_llm [--rows 1000] [--rounds 2]

Both read the same Parquet file of JPEG bytes and captions, ask the same pocket model for 16 tokens per row (greedy) on
one vLLM replica on CPU, and write Parquet. ``ray.data.llm`` runs the only way that works for images with this vLLM:
decoding and prompt in the user's ``preprocess``, its other stages off, ``should_continue_on_error=True``.

``clean_speedup``: ratio of rows/s between the first and the last file written, so start-up is out.
``object_store_bytes_per_row``: output of all operators before the write, from Ray Data's statistics.
``rows_delivered``: rows in the files at the end when one JPEG of all is truncated.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import finish, interleaved, last_json, median, say

if TYPE_CHECKING:
    import ray.data

MAX_TOKENS = 16
BLOCK = 32
SIDE = 640  # pixels of a photograph's shorter side; decoded 0.9 MB, as JPEG about 60 KB
ENGINE = {"max_model_len": 512, "max_num_seqs": 64, "enforce_eager": True}


def main() -> None:
    """Clean rows in turn, then the faulty rows, each in a process of its own; print the line."""
    options = _options()
    if options.arm:
        print(json.dumps({"ours": ours, "theirs": theirs}[options.arm](options.source, options.target)))
        return
    folder = Path(tempfile.mkdtemp(prefix="rayllm-"))
    try:
        _measure(options.rows, options.rounds, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    for name in ("--arm", "--source", "--target"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(rows: int, rounds: int, folder: Path) -> None:
    write_rows(folder / "clean.parquet", rows, bad=None)
    write_rows(folder / "faulty.parquet", rows, bad=rows // 2)
    found: dict[str, dict[str, Any]] = {}

    def run(name: str, source: str) -> float:
        found[f"{name} {source}"] = _run(name, folder / f"{source}.parquet", folder / f"{name}-{source}")
        return float(found[f"{name} {source}"]["rows_per_s"])

    rates = interleaved({name: lambda name=name: run(name, "clean") for name in ("ours", "theirs")}, rounds)
    for name in ("ours", "theirs"):
        run(name, "faulty")
        say(f"{name} with one truncated JPEG: {found[f'{name} faulty']}")
    finish(
        "against_ray_llm",
        {
            "clean_speedup": median(rates["ours"]) / median(rates["theirs"]) if median(rates["theirs"]) else None,
            "rows": rows,
            "rows_per_s": {name: [round(rate, 2) for rate in values] for name, values in rates.items()},
            "clean_rows_delivered": {name: found[f"{name} clean"]["rows"] for name in rates},
            "object_store_bytes_per_row": {name: found[f"{name} clean"]["bytes_per_row"] for name in rates},
            "rows_delivered": {name: found[f"{name} faulty"]["rows"] for name in rates},
            "their_error": found["theirs faulty"]["error"],
        },
    )


def _run(name: str, source: Path, target: Path) -> dict[str, Any]:
    """Rows written, their rate without start-up, bytes per row and the error of a process that did not end well."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    command = [
        sys.executable,
        "-m",
        "benchmarks.against_ray_llm",
        "--arm",
        name,
        "--source",
        str(source),
        "--target",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = sorted(target.rglob("*.parquet"), key=lambda path: path.stat().st_mtime)
    counts = [pq.read_metadata(file).num_rows for file in files]
    seconds = files[-1].stat().st_mtime - files[0].stat().st_mtime if files else 0.0
    said = last_json(done.stdout) if done.returncode == 0 else {}
    errors = [line for line in done.stderr.splitlines() if "Error" in line]
    return {
        "rows": sum(counts),
        "rows_per_s": sum(counts[1:]) / seconds if seconds else 0.0,
        "bytes_per_row": said.get("bytes_per_row"),
        "error": None if done.returncode == 0 else (errors[-1] if errors else f"exit {done.returncode}")[:300],
    }


def write_rows(target: Path, rows: int, bad: int | None) -> None:
    """Records with real JPEG bytes; the file of row ``bad`` ends after half of its bytes."""
    from adamllm_ray.data.record import RECORD_SCHEMA, record_id

    table = []
    for number in range(rows):
        image, caption = photograph(number), f"a red field left of a blue lake, number {number}"
        if number == bad:
            image = image[: len(image) // 2]
        name = record_id(image, caption, str(number))
        row = {"id": name, "source": "benchmark", "key": str(number), "verdict": "ok"}
        table.append(row | {"image": image, "caption": caption})
    pq.write_table(pa.Table.from_pylist(table, schema=RECORD_SCHEMA), target, row_group_size=BLOCK)


def photograph(number: int) -> bytes:
    """A JPEG of about 60 KB: smooth shapes with some grain."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE * 4 // 3, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = draw.integers(-6, 7, smooth.shape, dtype=np.int16)
    sink = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(sink, "JPEG", quality=80)
    return sink.getvalue()


def ours(source: str, target: str) -> dict[str, Any]:
    """The Synthesizer actor of our graph."""
    from ray.data import ActorPoolStrategy

    from adamllm_ray.config import ImageLimits, SynthesisSection
    from adamllm_ray.synthesis.actors import Synthesizer

    engine = {"max_model_len": 512, "max_num_seqs": 64, "kv_cache_gib": 0.5}
    settings = SynthesisSection.model_validate({"engine": engine, "max_new_tokens": MAX_TOKENS})
    return _written(
        _blocks(source).map_batches(
            Synthesizer,
            fn_constructor_kwargs={
                "model": "pocket:synthesizer",
                "settings": settings,
                "limits": ImageLimits(),
                "seed": 0,
            },
            batch_size=BLOCK,
            batch_format="pyarrow",
            udf_modifying_row_count=False,
            num_cpus=1,
            compute=ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=3, max_tasks_in_flight_per_actor=4),
        ),
        target,
    )


def theirs(source: str, target: str) -> dict[str, Any]:
    """ray.data.llm as its documentation has it, with the settings without which it does not run here."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from adamllm_ray.models.checkpoint import resolve_model
    from adamllm_ray.synthesis.actors import load_chat
    from adamllm_ray.synthesis.prompts import synthesis_prompt
    from adamllm_ray.synthesis.triplets import TripletParser

    rows = _blocks(source)  # first, since build_processor connects to Ray too
    model = resolve_model("pocket:synthesizer")
    chat = load_chat(model)
    stop = [TripletParser(chat).end_id]

    def preprocess(row: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        sampling = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "stop_token_ids": stop, "ignore_eos": True}
        return {
            "id": row["id"],
            "prompt": chat.decode(synthesis_prompt(chat, row["caption"]), keep_special=True),
            "multimodal_data": {"image": Image.open(io.BytesIO(row["image"])).convert("RGB")},
            "multimodal_uuids": {"image": [row["id"]]},
            "sampling_params": sampling | {"detokenize": True, "skip_special_tokens": False},
        }

    def postprocess(row: dict[str, Any]) -> dict[str, Any]:
        return {"id": row["id"], "text": row["generated_text"], "tokens": list(row["generated_tokens"])}

    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=ENGINE | {"dtype": "float32", "generation_config": "vllm", "mm_processor_cache_gb": 0},
        batch_size=BLOCK,
        concurrency=(1, 1),
        max_concurrent_batches=3,
        should_continue_on_error=True,
        log_engine_metrics=False,
        placement_group_config={"bundles": [{"CPU": 1}]},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    return _written(build_processor(config, preprocess=preprocess, postprocess=postprocess)(rows), target)


def _blocks(source: str) -> ray.data.Dataset:
    """The rows in blocks of `BLOCK`, in a Ray of this process. Engines of both sides get one thread."""
    import ray

    from adamllm_ray.ray_runtime import prepare_environment

    prepare_environment()
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[1])
    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        object_store_memory=1 << 30,
        runtime_env={"env_vars": env | {"VLLM_LOGGING_LEVEL": "WARNING", "PYTHONPATH": root}},
    )
    ray.data.DataContext.get_current().use_datasource_v2 = False  # its ten footer-reading actors take minutes here
    return ray.data.read_parquet(source, num_cpus=0.1).repartition(target_num_rows_per_block=BLOCK, strict=True)


def _written(dataset: ray.data.Dataset, target: str) -> dict[str, Any]:
    dataset.write_parquet(target, ray_remote_args={"num_cpus": 0.1})
    rows = sum(pq.read_metadata(file).num_rows for file in Path(target).rglob("*.parquet"))
    stages = _operators(dataset.get_stats_summary())
    sizes = {one.operator_name: getattr(one.output_size_bytes, "sum", 0) or 0 for one in stages}
    say(f"bytes per operator: {sizes}")
    between = sum(size for name, size in sizes.items() if "Write" not in name)
    return {"bytes_per_row": round(between / max(1, rows))}


def _operators(summary: Any) -> list[Any]:
    """Statistics of every operator, those before the last one included."""
    return [one for before in summary.parents for one in _operators(before)] + list(summary.operators_stats)


if __name__ == "__main__":
    say(f"load average {os.getloadavg()}")
    main()
