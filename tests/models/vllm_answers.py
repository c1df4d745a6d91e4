"""Greedy token ids that vLLM gives for prompts in a JSON file; a process of its own, run by test_export_in_vllm.py.

Several models are loaded one after the other: vLLM takes longer to import than a tiny model to load.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from adamllm_ray.config import EngineSection
from adamllm_ray.synthesis.engine import Engine, Request, SamplingSpec


def answers(folder: str, adapter: str | None, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    settings = EngineSection(max_model_len=512, max_num_seqs=20, kv_cache_gib=0.1, enforce_eager=True, lora=adapter)
    engine = Engine(folder, settings, images=True)
    requests = [
        Request(str(i), one["ids"], Image.open(io.BytesIO(bytes.fromhex(one["image"]))).convert("RGB"))
        for i, one in enumerate(asked)
    ]
    sampling = SamplingSpec(max_tokens=len(asked[0]["tokens"]))
    completions = asyncio.run(engine.generate(requests, sampling))
    engine.close()
    return [{"ids": one.token_ids, "error": one.error} for one in completions]


def main(questions: str, found: str) -> None:
    """``questions``: name -> {folder, adapter, asked}; ``found``: name -> answers."""
    jobs = json.loads(Path(questions).read_text())
    done = {name: answers(job["folder"], job["adapter"], job["asked"]) for name, job in jobs.items()}
    Path(found).write_text(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
