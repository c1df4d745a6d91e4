"""Greedy token ids that vLLM gives for prompts in a JSON file; a process of its own, run by test_export_in_vllm.py."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path

from PIL import Image

from adamllm_ray.config import EngineSection
from adamllm_ray.synthesis.engine import Engine, Request, SamplingSpec


def main(folder: str, questions: str, answers: str) -> None:
    asked = json.loads(Path(questions).read_text())
    engine = Engine(folder, EngineSection(max_model_len=512, max_num_seqs=20, kv_cache_gib=0.1), images=True)
    requests = [
        Request(str(i), one["ids"], Image.open(io.BytesIO(bytes.fromhex(one["image"]))).convert("RGB"))
        for i, one in enumerate(asked)
    ]
    sampling = SamplingSpec(max_tokens=len(asked[0]["tokens"]))
    completions = asyncio.run(engine.generate(requests, sampling))
    engine.close()
    Path(answers).write_text(json.dumps([{"ids": one.token_ids, "error": one.error} for one in completions]))


if __name__ == "__main__":
    main(*sys.argv[1:])
