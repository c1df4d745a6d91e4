"""One of two ranks that train a tiny model in every way, one after the other; run by test_export_in_vllm.py.

Each way ends with an export. The rows are cut so that rank 0 never has a picture: under ZeRO that hangs unless the
tower takes part all the same.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

WHOLE = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # or ZeRO-3 would shard nothing this small
CHECKPOINTED = {"gradient_checkpointing": True}
FROZEN = {"train": False}
LORA = {"lora": {"rank": 4, "export_adapter": True}, "projector": FROZEN, "vision_tower": FROZEN}
WAYS: dict[str, dict[str, Any]] = {
    "full-zero-2": {"zero_stage": 2},
    "lora-zero-2": {"zero_stage": 2, **LORA},
    "full-zero-3": {
        "zero_stage": 3,
        "deepspeed": WHOLE,
        "language_model": CHECKPOINTED,
        "vision_tower": CHECKPOINTED,
    },
    "lora-zero-3": {
        "zero_stage": 3,
        "deepspeed": WHOLE,
        **LORA,
        "language_model": CHECKPOINTED,
        "vision_tower": FROZEN | CHECKPOINTED,
    },
}


def examples(processor: Any) -> list[Any]:
    """Sixteen rows, half of them text; in each window of four the two shorter ones have no picture."""
    from adamllm_ray.models.chat import ChatFormat, Turn
    from adamllm_ray.training.conversations import conversation_example, text_example
    from tests.training.conftest import picture

    chat = ChatFormat(processor.tokenizer, image_token=processor.image_token)
    found = []
    for number in range(8):
        turns = [Turn("user", "Describe the image.", image=True), Turn("assistant", f"a red circle {number} " * 3)]
        image = picture(number, wide=60 + 30 * (number % 3))
        found.append(conversation_example(chat, turns, "assistant", id=f"i{number}", image=image))
        found.append(text_example(processor.tokenizer, f"{number} 0 1 2", id=f"t{number}"))
    return found


def train(base: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Four steps and an export to ``folder``."""
    import torch

    from adamllm_ray.config import TrainingSection
    from adamllm_ray.data.storage import resolve
    from adamllm_ray.models.checkpoint import load_processor
    from adamllm_ray.training.adapters import load_base
    from adamllm_ray.training.batches import micro_batches
    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.export import export_trained
    from adamllm_ray.training.loop import StepLoop
    from adamllm_ray.training.parts import prepare_parts

    section = TrainingSection.model_validate(
        {"global_batch": 4, "micro_batch": 2, "workers": 2, "precision": "fp32", "learning_rate": 1e-3} | settings
    )
    processor = load_processor(base)
    torch.manual_seed(0)
    model = load_base(base, section)
    groups = prepare_parts(model, section).groups
    loop = StepLoop(model, section, steps=4, groups=groups)
    rows, collator, pictures = examples(processor), Collator(processor, 512, always_image=True), []

    class Rows:
        steps = 4

        def load(self, step: int) -> list[Any]:
            window = rows[step * 4 : step * 4 + 4]
            parts = micro_batches(window, section, loop.rank, loop.world, collator.length)
            pictures.extend(example.image is not None for part in parts for example in part)
            return [collator(part) for part in parts]

    losses = [report.loss for report in loop.run(Rows())]
    export_trained(loop, base, section, resolve(str(folder / "model")), resolve(str(folder / "adapter")))
    return {"losses": losses, "pictures": pictures}


def main(base: str, target: str) -> None:
    import torch

    torch.set_num_threads(1)
    from adamllm_ray.training.loop import join_process_group

    join_process_group()
    rank = torch.distributed.get_rank()
    found = {name: train(base, settings, Path(target) / name) for name, settings in WAYS.items()}
    (Path(target) / f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # gloo's and DeepSpeed's threads may end an interpreter that shuts down in order with SIGABRT


if __name__ == "__main__":
    main(*sys.argv[1:])
