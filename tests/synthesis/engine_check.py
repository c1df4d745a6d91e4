"""Run by test_engine.py in a process of its own: one engine, its answers as one JSON line.

python -m tests.synthesis.engine_check MODEL [ADAPTER] in-process|served
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from adamllm_ray.config import EngineSection
from adamllm_ray.synthesis.engine import Engine, Request, SamplingSpec

PROMPT = [1, 50, 60, 70, 80, 90]
GREEDY = SamplingSpec(12, logprobs=0)


def main(model: str, adapter: str | None, core: str) -> None:
    budget = {"max_num_batched_tokens": 128}  # two of the wide prompts and a part of the third
    settings = EngineSection(max_model_len=128, max_num_seqs=4, kv_cache_gib=0.05, lora=adapter, extra=budget)
    engine = Engine(model, settings, in_process=core == "in-process")
    print(json.dumps(asyncio.run(ask(engine))))
    engine.close()


async def ask(engine: Engine) -> dict[str, Any]:
    """A batch in which every request has its own sampling, more rows than slots, and two that are refused."""
    sampled = [SamplingSpec(12, temperature=1.0, seed=seed, logprobs=0) for seed in (1, 2, 1)]
    requests = [
        *(Request(f"greedy-{number}", PROMPT) for number in range(7)),
        *(Request(f"sampled-{number}", PROMPT, sampling=each) for number, each in enumerate(sampled)),
        *(Request(f"wide-{number}", [1, *[20 + number] * 59], sampling=sampled[0]) for number in range(4)),
        Request("long", [7] * 400),
        Request("unknown", [1, 10**6]),
        Request("short", PROMPT, sampling=SamplingSpec(2)),
    ]
    answers = await engine.generate(requests, GREEDY)
    return {
        "answers": {one.id: one.token_ids for one in answers if one.error is None},
        "errors": {one.id: [one.error, one.too_long] for one in answers if one.error is not None},
        "mean_logprobs": {one.id: one.mean_logprob for one in answers if one.error is None},
        "prompt_tokens": sorted({one.prompt_tokens for one in answers if one.error is None}),
        "totals": engine.meters.totals,
    }


if __name__ == "__main__":
    name, *between, kind = sys.argv[1:]
    main(name, between[0] if between else None, kind)
