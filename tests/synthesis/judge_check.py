"""Run by test_engine.py in its own process: the real judge on vLLM beside transformers; prints one JSON line."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pyarrow as pa

from adamllm_ray.data.record import SYNTHESIZED_SCHEMA
from adamllm_ray.synthesis.actors import Judge
from adamllm_ray.synthesis.consistency import judge_prompt, judgement, label_ids
from tests.synthesis.fakes import config_for

QUESTIONS = [f"What is shown {number}?" for number in range(12)]


def main(model: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = config_for(Path("unused"), Path(model), Path(model)).judge
    judge = Judge(model, config, 1.0)
    tasks = [(question, f"a circle, {question}", "a circle") for question in QUESTIONS]
    judged = asyncio.run(judge(_table([*tasks, ("q " * 400, "i", "p")]))).to_pylist()

    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    labels = label_ids(judge.tokenizer)
    expected = []
    for task in tasks:
        with torch.no_grad():
            logits = reference(torch.tensor([judge_prompt(judge.tokenizer, *task, False)])).logits[0, -1]
        expected.append(judgement(dict(enumerate(logits.log_softmax(-1).tolist())), labels))
    result = {
        "verdicts": [row["task_verdict"] for row in judged],
        "expected_verdicts": [str(each.verdict(config.threshold)) for each in expected],
        "vllm": [[row["judge_yes"], row["judge_no"], row["judge_open"]] for row in judged[:-1]],
        "transformers": [[each.yes, each.no, each.open] for each in expected],
    }
    print(json.dumps(result))


def _table(tasks: list[tuple[str, str, str]]) -> pa.Table:
    rows = [
        {
            "id": str(number), "source": "s", "key": "k", "caption": "c", "verdict": "ok",
            "instruction": question, "informative": informative, "precise": precise,
        }
        for number, (question, informative, precise) in enumerate(tasks)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SYNTHESIZED_SCHEMA)


if __name__ == "__main__":
    main(sys.argv[1])
