"""Non-padding tokens per second of training, ours against TRL's SFTTrainer and the plain HF Trainer with DeepSpeed.

    python -m benchmarks.train_throughput [--rounds 3] [--rows 128]      two idle cores; needs the extra `benchmarks`

The same rows (a picture and a completion each), the same LLaVA-NeXT of 21 M parameters with random weights, fp32, AdamW
(fused), 64 rows per optimizer step; an epoch is timed, start-up is not; a fresh process each time, in turns. Two sets:
completions with a heavy tail (log-normal, median 40 words, longest 700) and near-equal ones (180 to 220 words).

* ours        windows of 64 rows in hash order, cut into micro-batches of at most 2,048 tokens (``token_budget``)
* ours_packed the same joined into sequences instead of padded (``packing``)
* trl         micro-batches of 8 in random order, as TRL's guide for vision models has it: packing and padding-free are
              refused for pictures, gradient checkpointing (its default) is off since memory suffices
* trl_grouped the same with ``train_sampling_strategy="group_by_length"`` and a column of lengths, image tokens
              included, that the user must compute: not in the guide, but legal
* trl_single  micro-batches of 1: no padding at all, which a CPU does not punish and a GPU does
* hf          Trainer + DeepSpeed, micro-batches of 8 grouped by length, the model's own loss

`vs_trl_heavy` (goal 1.3) and `vs_trl_even` (goal 1.0) compare with `trl`; the others have keys of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, interleaved, last_json, median
from benchmarks.sft import WORDS, Row, examples, in_processes, make_rows, trl_dataset

ARMS = ("ours", "ours_packed", "trl", "trl_grouped", "trl_single", "hf")
SETS = ("heavy", "even")
BATCH, MICRO, BUDGET, LONGEST = 64, 8, 2048, 1024
RATE = 1e-4


def main() -> None:
    """Every arm on both sets, in turns; print the line."""
    options = _options()
    if options.arm:
        print(json.dumps(ARM[options.arm](Path(options.base), options.set, options.rows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_base(Path(folder))
        found = {name: race(name, folder, options) for name in SETS}
    metrics: dict[str, Any] = {}
    for name, arms in found.items():
        rate = {arm: median([run["tokens_per_s"] for run in runs]) for arm, runs in arms.items()}
        metrics |= {f"vs_{arm}_{name}": rate["ours"] / rate[arm] for arm in rate if arm != "ours"}
        metrics |= {f"{arm}_{name}": {"tokens_per_s": round(rate[arm], 1), **runs[-1]} for arm, runs in arms.items()}
    goals = {"vs_trl_heavy": 1.3, "vs_trl_even": 1.0}
    finish("train_throughput", metrics | {"goals": goals, "rows": options.rows, "rounds": options.rounds})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=128, help=f"rows of an epoch; a multiple of {BATCH}")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="ours is compared with the others")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--set", choices=SETS, help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    return parser.parse_args()


def race(name: str, base: str, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What each arm found in each round on one set."""
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}

    def run(arm: str) -> float:
        own = ("--set", name, "--base", base, "--rows", str(options.rows))
        output = in_processes("benchmarks.train_throughput", arm, *own, threads=os.cpu_count() or 1)
        runs[arm].append(last_json(output))
        return float(runs[arm][-1]["tokens_per_s"])

    interleaved({arm: partial(run, arm) for arm in options.arms}, options.rounds)
    counted = {run["tokens"] for found in runs.values() for run in found}
    if len(counted) > 1:
        raise RuntimeError(f"{name}: not all trained on the same number of tokens: {sorted(counted)}")
    return runs


def write_base(folder: Path) -> None:
    """The model: wide enough that arithmetic, not Python, takes the time."""
    from adamllm_ray.models.checkpoint import export_model
    from adamllm_ray.pocket.architecture import Size, build_processor, build_tokenizer, build_vlm

    size = Size(hidden=448, layers=8, mlp=1280, vision_hidden=192, vision_layers=4)
    tokenizer = build_tokenizer([" ".join(WORDS), "Describe picture 0 1 2 3 4 5 6 7 8 9. user assistant"] * 20, 600)
    export_model(build_vlm(len(tokenizer), size), build_processor(tokenizer, size), folder)


def rows(name: str, count: int) -> list[Row]:
    """The rows of a set."""
    draw = random.Random(1)
    heavy = [min(700, max(4, round(40 * draw.lognormvariate(0, 1.1)))) for _ in range(count)]
    return make_rows(heavy if name == "heavy" else [draw.randint(180, 220) for _ in range(count)])


def load(base: Path) -> tuple[Any, Any]:
    """(model, processor) in fp32, with all cores."""
    import torch

    from adamllm_ray.models.checkpoint import load_vlm

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return load_vlm(base, "float32")


def ours(base: Path, name: str, count: int, *, packing: bool = False) -> dict[str, Any]:
    """The step loop, one process."""
    from adamllm_ray.config import TrainingSection
    from adamllm_ray.training.batches import ExampleBatches
    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.loop import StepLoop
    from adamllm_ray.training.parts import prepare_parts

    model, processor = load(base)
    section = TrainingSection.model_validate(
        {
            "global_batch": BATCH,
            "token_budget": BUDGET,
            "max_length": LONGEST,
            "packing": packing,
            "learning_rate": RATE,
            "precision": "fp32",
            "zero_stage": 0,
        }
    )
    collator = Collator(processor, LONGEST, packing=packing, always_image=True)
    source = ExampleBatches(examples(rows(name, count), processor), collator, section)
    loop = StepLoop(model, section, steps=source.steps, groups=prepare_parts(model, section).groups)
    began = clocks()
    reports = loop.run(source)
    computed = sum(report.inputs / (1 - report.padding) for report in reports)
    return result(began, clocks(), sum(report.inputs for report in reports), computed)


def trl(base: Path, name: str, count: int, *, micro: int = MICRO, order: str = "random") -> dict[str, Any]:
    """TRL's trainer."""
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    model, processor = load(base)
    made = rows(name, count)
    counter = Counter(DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(max_length=None, **arguments(base, micro, order)),
        train_dataset=trl_dataset(made, token_lengths(made, processor)),
        data_collator=counter,
        processing_class=processor,
    )
    return timed(trainer, counter)


def hf(base: Path, name: str, count: int) -> dict[str, Any]:
    """transformers' Trainer with DeepSpeed, a collator as its guides have it, and only answers labelled."""
    import deepspeed
    import torch
    from transformers import Trainer, TrainingArguments

    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(own)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled first
    model, processor = load(base)
    made = rows(name, count)

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [processor.apply_chat_template(messages(row)) for row in batch]
        found = processor(text=texts, images=[row["images"] for row in batch], padding=True, return_tensors="pt")
        labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
        for label, mask, row in zip(labels, found["attention_mask"], batch, strict=True):
            answer = len(processor.tokenizer.encode(row["completion"][0]["content"], add_special_tokens=False)) + 1
            label[: int(mask.sum()) - answer] = -100
        return dict(found) | {"labels": labels}

    processor.tokenizer.padding_side = "right"
    counter = Counter(collate)
    stage = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    config = stage | {"zero_optimization": {"stage": 0}, "gradient_clipping": "auto", "steps_per_print": 10**9}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(deepspeed=config, **arguments(base, MICRO, "group_by_length")),
        train_dataset=trl_dataset(made, token_lengths(made, processor)),
        data_collator=counter,
    )
    return timed(trainer, counter)


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One conversation for the chat template."""
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"][0]["content"]}]}
    answer = [{"type": "text", "text": row["completion"][0]["content"]}]
    return [asked, {"role": "assistant", "content": answer}]


def arguments(base: Path, micro: int, order: str) -> dict[str, Any]:
    """What TRL's and HF's arguments have in common."""
    return {
        "output_dir": str(base / "out"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": BATCH // micro,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "train_sampling_strategy": order,
        "length_column_name": "length",
        "remove_unused_columns": False,  # TRL would drop the lengths, and stop for want of them
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 1000,
        "report_to": "none",
        "disable_tqdm": True,
    }


class Counter:
    """A collator that counts tokens and computed positions of what it made."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.tokens, self.positions = inner, 0, 0

    def __call__(self, batch: Any) -> Any:
        made = self.inner(batch)
        self.tokens += int(made["attention_mask"].sum())
        self.positions += made["input_ids"].numel()
        return made


def timed(trainer: Any, counter: Counter) -> dict[str, Any]:
    """Train; the clock runs from the first batch to the end."""
    from transformers import TrainerCallback

    clock: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.append(clocks())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock.append(clocks())

    trainer.add_callback(Clock())
    trainer.train()
    return result(clock[0], clock[1], counter.tokens, counter.positions)


def token_lengths(made: list[Row], processor: Any) -> list[int]:
    """Tokens of each row with its image's, as the user of TRL would have to compute them."""
    from adamllm_ray.training.collate import Collator

    collator = Collator(processor, LONGEST)
    return [collator.length(example) for example in examples(made, processor)]


def clocks() -> tuple[float, float]:
    """(wall, processor) seconds so far: on a busy machine only the second says something."""
    return time.perf_counter(), time.process_time()


def result(began: tuple[float, float], ended: tuple[float, float], tokens: int, positions: float) -> dict[str, Any]:
    """What an arm prints."""
    seconds, processor = (after - before for after, before in zip(ended, began, strict=True))
    return {
        "tokens_per_s": tokens / seconds,
        "tokens_per_processor_s": round(tokens / processor, 1),
        "seconds": round(seconds, 2),
        "tokens": tokens,
        "padding": round(1 - tokens / positions, 4),
    }


ARM = {
    "ours": ours,
    "ours_packed": partial(ours, packing=True),
    "trl": trl,
    "trl_grouped": partial(trl, order="group_by_length"),
    "trl_single": partial(trl, micro=1),
    "hf": hf,
}


if __name__ == "__main__":
    main()
