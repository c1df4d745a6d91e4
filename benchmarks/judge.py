"""What prefix caching and one constrained token are worth to the judge. Real vLLM on CPU, in this process.

    python -m benchmarks.judge [--prompts 96] [--rounds 3]

Both sides judge the same tasks, new ones in each round, with the same model and the same few-shot header of at least
1,600 tokens. Ours: the header is in the prefix cache, the answer is one token out of Yes / No / Open with its
probabilities. The usual way: no prefix cache, two free tokens that are read as text. Two engines in one process, used
in turn. ``speedup`` = ours / usual in prompts/s. The judge is a small random Llama with room for the header: what is
measured is the work per prompt, not what it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from adamllm_ray.config import EngineSection
from adamllm_ray.models.checkpoint import export_model
from adamllm_ray.synthesis.consistency import FEW_SHOT_HEADER, LABELS, judge_prompt, label_ids
from adamllm_ray.synthesis.engine import Completion, Engine, Request, SamplingSpec
from benchmarks.measure import finish, interleaved, median, say

HEADER_TOKENS = 1600
POSITIONS = 4096


def main() -> None:
    """Start both engines, judge in turn, print the line."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="judge-"))
    try:
        tokenizer = make_judge(folder / "model", options.hidden, options.layers)
        asyncio.run(_measure(folder / "model", tokenizer, options.prompts, options.rounds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    return parser.parse_args()


def make_judge(folder: Path, hidden: int, layers: int) -> Any:
    """Write a random Llama with `POSITIONS` positions and our pocket tokenizer; returns the tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from adamllm_ray.models.checkpoint import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("pocket:judge"), local_files_only=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    export_model(LlamaForCausalLM(config), tokenizer, folder)
    return tokenizer


def header_ids(tokenizer: Any, tokens: int) -> list[int]:
    """Our own worked examples, repeated in rotated order until there are at least ``tokens``, and a whole number."""
    intro, *examples = FEW_SHOT_HEADER.rstrip("\n").split("\n\n")
    texts = [intro]
    while True:
        for shift in range(len(examples)):
            texts += examples[shift:] + examples[:shift]
            ids = list(tokenizer.encode("\n\n".join(texts) + "\n\n", add_special_tokens=False))
            if len(ids) >= tokens:
                return [int(tokenizer.bos_token_id), *ids]


def tasks(count: int, first: int = 0) -> list[tuple[str, str, str]]:
    """Question, informative answer, precise answer; all different, so that only the header is found in the cache."""
    kinds = ["boats", "trees", "people", "windows", "cars"]
    return [
        (
            f"How many {kinds[n % 5]} are left of house number {n}?",
            f"Left of house number {n} there are {n % 7} {kinds[n % 5]}, two of them half hidden behind a hedge.",
            str(n % 7 + n % 2),
        )
        for n in range(first, first + count)
    ]


async def _measure(model: Path, tokenizer: Any, prompts: int, rounds: int) -> None:
    header = header_ids(tokenizer, HEADER_TOKENS)
    bare = [judge_prompt(tokenizer, *task, few_shot=False)[1:] for task in tasks(prompts * rounds)]
    allowed = tuple(label_ids(tokenizer).values())
    ours = SamplingSpec(1, allowed_token_ids=allowed, logprobs=len(allowed))
    usual = SamplingSpec(2)
    settings = EngineSection(max_model_len=POSITIONS, max_num_seqs=32, kv_cache_gib=1.0)
    cached = Engine(str(model), settings)
    plain = Engine(str(model), settings.model_copy(update={"extra": {"enable_prefix_caching": False}}))
    last: dict[str, list[Completion]] = {}

    def timed(engine: Engine, sampling: SamplingSpec, name: str) -> Any:
        batches = iter(range(0, prompts * rounds, prompts))

        async def judge() -> float:
            first = next(batches)
            requests = [Request(str(number), header + ids) for number, ids in enumerate(bare[first : first + prompts])]
            started = time.perf_counter()
            last[name] = await engine.generate(requests, sampling)
            return prompts / (time.perf_counter() - started)

        return lambda: asyncio.run_coroutine_threadsafe(judge(), loop).result()

    loop = asyncio.get_running_loop()
    for engine, sampling in ((cached, ours), (plain, usual)):
        await engine.generate([Request("w", bare[0])], sampling)  # first-time work; the header stays unseen
    rates = await asyncio.to_thread(
        interleaved, {"ours": timed(cached, ours, "ours"), "usual": timed(plain, usual, "usual")}, rounds
    )
    errors = [one.error for completions in last.values() for one in completions if one.error]
    if errors:
        raise RuntimeError(errors[0])
    hits = sum(one.cached_tokens for one in last["ours"]) / sum(one.prompt_tokens for one in last["ours"])
    finish(
        "judge",
        {
            "speedup": median(rates["ours"]) / median(rates["usual"]),
            "ours_prompts_per_s": [round(rate, 2) for rate in rates["ours"]],
            "usual_prompts_per_s": [round(rate, 2) for rate in rates["usual"]],
            "prompts": prompts,
            "header_tokens": len(header),
            "tokens_after_the_header": round(sum(map(len, bare)) / len(bare), 1),
            "prefix_hit_share": hits,
            "labels": len(LABELS),
        },
    )
    cached.close()
    plain.close()


if __name__ == "__main__":
    say(f"load average {os.getloadavg()}")
    main()
