"""One set of rows for several trainers: as our examples, and as TRL's prompt / completion rows with the same tokens.

Used by train_parity.py and train_throughput.py. An arm is a function of this kind of module run in a process of its
own (`in_processes`), since DeepSpeed, accelerate and TRL each leave their mark on a process.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT

WORDS = "red green blue circle square triangle left right above below of a the and is two three small large".split()  # noqa: SIM905


@dataclass(frozen=True)
class Row:
    """What is asked about picture ``number`` (noise, seeded by it) and what is to be answered."""

    number: int
    prompt: str
    completion: str


def make_rows(lengths: Sequence[int], *, seed: int = 0) -> list[Row]:
    """Rows whose completions have so many words."""
    draw = random.Random(seed)
    return [
        Row(number, f"Describe picture {number}.", " ".join(draw.choices(WORDS, k=length)))
        for number, length in enumerate(lengths)
    ]


def pixels(seed: int, side: int = 60) -> Any:
    """A PIL picture of noise."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def examples(rows: list[Row], processor: Any) -> list[Any]:
    """The rows as the package's own examples."""
    import io

    from adamllm_ray.models.chat import ChatFormat, Turn
    from adamllm_ray.training.conversations import conversation_example

    chat = ChatFormat(processor.tokenizer, chat_template=processor.chat_template, image_token=processor.image_token)
    made = []
    for row in rows:
        buffer = io.BytesIO()
        pixels(row.number).save(buffer, "PNG")
        turns = [Turn("user", row.prompt, image=True), Turn("assistant", row.completion)]
        made.append(conversation_example(chat, turns, "assistant", id=str(row.number), image=buffer.getvalue()))
    return made


def trl_dataset(rows: list[Row], lengths: list[int] | None = None) -> Any:
    """The rows as TRL documents them for vision models: prompt and completion messages, a list of images."""
    from datasets import Dataset, Features, Image, List, Value

    message = [{"role": Value("string"), "content": Value("string")}]
    features = {"prompt": message, "completion": message, "images": List(Image()), "length": Value("int64")}
    table = [
        {
            "prompt": [{"role": "user", "content": row.prompt}],
            "completion": [{"role": "assistant", "content": row.completion}],
            "images": [pixels(row.number)],
            "length": lengths[index] if lengths else 0,
        }
        for index, row in enumerate(rows)
    ]
    return Dataset.from_list(table, features=Features(features))


def in_processes(module: str, arm: str, *arguments: str, world: int = 1, threads: int = 1) -> str:
    """Run ``python -m MODULE --arm ARM ...`` as ``world`` ranks over gloo, on the CPU. Returns rank 0's stdout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        if world > 1:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            environment |= {key: str(value) for key, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-m", module, "--arm", arm, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
        processes.append(subprocess.Popen(command, env=environment, **pipes))  # type: ignore[call-overload]
    outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"{arm}: exit code {process.returncode}\n{errors[-3000:]}")
    return str(outputs[0][0])


def write_result(path: Path, result: dict[str, Any]) -> None:
    """What an arm found, for the process that compares them."""
    path.write_text(json.dumps(result), "utf-8")
