"""One process of a training loop on text, run by test_loop.py: alone or under torchrun-like variables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any], base: str) -> None:
    import torch

    torch.set_num_threads(1)
    from safetensors.torch import load_file

    from adamllm_ray.config import TrainingSection
    from adamllm_ray.data.storage import resolve
    from adamllm_ray.models.chat import ChatFormat, Turn
    from adamllm_ray.models.checkpoint import load_vlm
    from adamllm_ray.training.batches import ExampleBatches
    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.conversations import conversation_example, text_example
    from adamllm_ray.training.export import export_trained
    from adamllm_ray.training.loop import StepLoop, join_process_group
    from adamllm_ray.training.parts import prepare_parts
    from tests.training.conftest import picture

    join_process_group()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, processor = load_vlm(base, "float32")
    chat = ChatFormat(processor.tokenizer)
    examples = []
    for number in range(14):  # the last global batch is short, texts and images mix
        turns = [Turn("user", "Describe the image.", image=True), Turn("assistant", f"a red circle {number} " * 3)]
        example = conversation_example(chat, turns, "assistant", id=f"i{number}", image=picture(number))
        text = text_example(processor.tokenizer, f"{number} 0 1 2", id=f"t{number}")
        examples.append(example if number % 3 else text)
    section = TrainingSection.model_validate(
        {"global_batch": 8, "precision": "fp32", "learning_rate": 3e-3, "epochs": 2, "weight_decay": 0.1}
        | spec["section"]
    )
    source = ExampleBatches(
        examples,
        Collator(processor, 512, always_image=True, packing=section.packing),
        section,
        seed=3,
        rank=rank,
        world=world,
    )
    parts = prepare_parts(model, section)
    loop = StepLoop(model, section, steps=source.steps, groups=parts.groups)
    folder, start = Path(spec["folder"]), spec.get("start", 0)
    if start and spec["universal"]:
        loop.load(folder / "universal", universal=True)
    elif start:
        loop.load(folder)
    reports = []
    for report in loop.run(source, start=start, on_step=lambda r: loop.save(folder) if r.step == 2 else None):
        reports.append(report.loss)
    export_trained(loop, base, section, resolve(str(folder / f"model-{world}-{start}")))
    if rank == 0:
        weights = load_file(folder / f"model-{world}-{start}" / "model.safetensors")
        total = sum(float(tensor.double().abs().sum()) for tensor in weights.values())
        (folder / f"result-{world}-{start}.json").write_text(json.dumps({"losses": reports, "total": total}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
