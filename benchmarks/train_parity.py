"""The step loop against TRL's SFTTrainer and against itself: the same rows, model and optimizer give the same losses.

    python -m benchmarks.train_parity             five minutes on two cores; needs the extra `benchmarks` (TRL)

20 steps of 8 rows (a picture each, completions of 3 to 60 words) on ``pocket:base`` in fp32, AdamW, cosine,
clipping. Compared: loss per step of ours and of TRL, one process each (`max_loss_diff`, goal 1e-5); of ZeRO-1/2/3 on
two gloo ranks with one process; of packed sequences with padded ones; the adapter tensors of a LoRA run after the last
step, ours and TRL's. Rows go to TRL as prompt and completion, because with `messages` rows it puts loss on prompts and
image tokens too (that is its documented default, not a fault of either). Weight decay is 0: TRL decays all vectors but
those of norms and biases, we decay none, and a CLIP tower has a few. No row is without a picture: TRL encodes template
and text in one go, we encode them apart so that text cannot open a turn, and with this small tokenizer "\\n\\n" before
a word comes out as two tokens there and as one here; before an image they agree, and the ids are compared first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, say
from benchmarks.sft import Row, examples, in_processes, make_rows, trl_dataset, write_result

STEPS, BATCH, MICRO = 20, 8, 4
SECTION = {
    "global_batch": BATCH,
    "micro_batch": MICRO,
    "max_length": 512,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "warmup_share": 0.0,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "precision": "fp32",
    "zero_stage": 0,
}
FROZEN = {"projector": {"train": False}, "vision_tower": {"train": False}}
LORA = {"rank": 8, "alpha": 16.0, "targets": {"language_model": ["q_proj", "k_proj", "v_proj", "o_proj"]}}
PACKED = {"token_budget": 1024, "max_length": 512, "packing": True}
SHARDED = {  # without the threshold, DeepSpeed keeps all of so small a model whole
    "zero_stage": 3,
    "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
}
ARMS: dict[str, tuple[int, dict[str, Any]]] = {  # ours: ranks, settings
    "ours": (1, {}),
    "zero_1": (2, {"zero_stage": 1}),
    "zero_2": (2, {"zero_stage": 2}),
    "zero_3": (2, SHARDED),
    "packed": (1, PACKED),
    "packed_zero_3": (2, PACKED | SHARDED),
    "ours_lora": (1, {"lora": LORA} | FROZEN),
}
THEIRS = {"trl": False, "trl_lora": True}


def main() -> None:
    """Every arm in processes of its own; print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=[*ARMS, *THEIRS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm in THEIRS:
        trl(options.folder / options.arm, THEIRS[options.arm])
    elif options.arm:
        ours(options.folder / options.arm, ARMS[options.arm][1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder))


def compare(folder: Path) -> None:
    """Run all arms, compare, print."""
    found: dict[str, dict[str, Any]] = {}
    for arm in (*THEIRS, *ARMS):
        in_processes("benchmarks.train_parity", arm, "--folder", str(folder), world=ARMS.get(arm, (1,))[0])
        found[arm] = json.loads((folder / arm).with_suffix(".json").read_text())
        say(f"{arm}: {found[arm]['losses'][0]:.6f} ... {found[arm]['losses'][-1]:.6f}")
    ids = [found[arm]["ids"] for arm in ("ours", "trl")]
    if ids[0] != ids[1]:
        raise RuntimeError("TRL and we do not train on the same tokens: nothing else can be compared")

    def apart(one: str, other: str) -> float:
        pairs = zip(found[one]["losses"], found[other]["losses"], strict=True)
        return max(abs(a - b) for a, b in pairs)

    own = {f"{arm}_loss_diff": apart("ours", arm) for arm in ARMS if arm not in ("ours", "ours_lora")}
    metrics = {
        "max_loss_diff": apart("ours", "trl"),
        "goal": 1e-5,
        "lora_max_loss_diff": apart("ours_lora", "trl_lora"),
        "lora_max_adapter_diff": adapter_diff(folder),
        **own,
        "first_loss": found["ours"]["losses"][0],
        "last_loss": found["ours"]["losses"][-1],
        "steps": STEPS,
        "labels": found["ours"]["labels"],
    }
    exact = {key: f"{value:.3g}" for key, value in metrics.items() if key.endswith("_diff")}
    finish("train_parity", metrics | {key: float(value) for key, value in exact.items()}, digits=12)


def adapter_diff(folder: Path) -> float:
    """Largest difference between any two elements of the adapters, by name."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / f"{name}.safetensors") for name in ("ours_lora", "trl_lora"))
    if a.keys() != b.keys() or not a:
        raise RuntimeError(f"the adapters are not on the same layers: {sorted(a.keys() ^ b.keys())[:3]}")
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def rows() -> list[Row]:
    """In the order in which our loop takes them, short and long."""
    from adamllm_ray.training.batches import epoch_order

    made = make_rows([3 + number * 37 % 58 for number in range(STEPS * BATCH)])
    return [made[index] for index in epoch_order([str(row.number) for row in made], 0, 0)]


def ours(target: Path, settings: dict[str, Any]) -> None:
    """One rank of our loop."""
    import torch
    from torch import distributed as dist

    from adamllm_ray.config import TrainingSection
    from adamllm_ray.models.checkpoint import load_vlm
    from adamllm_ray.training.batches import ExampleBatches
    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.loop import StepLoop, join_process_group
    from adamllm_ray.training.parts import prepare_parts

    join_process_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    section = TrainingSection.model_validate(SECTION | settings | ({"micro_batch": 2} if world > 1 else {}))
    model, processor = load_vlm("pocket:base", "float32")
    collator = Collator(processor, section.max_length, packing=section.packing, always_image=True)
    source = ExampleBatches(examples(rows(), processor), collator, section, rank=rank, world=world)
    parts = prepare_parts(model, section)
    draw_adapters(model)
    loop = StepLoop(model, section, steps=source.steps, groups=parts.groups)
    reports = loop.run(source)
    if rank == 0:
        ids = [sorted(collator.expand(source._example(place))[0] for place in range(BATCH))]
        result = {"losses": [report.loss for report in reports], "labels": sum(report.tokens for report in reports)}
        write_result(target.with_suffix(".json"), result | {"ids": ids})
        if section.lora:
            save_adapters(model, target)
    torch.distributed.barrier()


def trl(target: Path, lora: bool) -> None:
    """TRL's trainer, set up as its documentation says for prompt / completion rows with images."""
    import torch
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from adamllm_ray.models.checkpoint import load_vlm

    class Recording(SFTTrainer):  # type: ignore[misc]
        parts: list[float] = []  # noqa: RUF012
        ids: list[Any] = []  # noqa: RUF012

        def training_step(self, model: Any, inputs: Any, *more: Any, **options: Any) -> torch.Tensor:
            if len(self.ids) < BATCH:
                masks = inputs["attention_mask"].bool()
                self.ids += [row[mask].tolist() for row, mask in zip(inputs["input_ids"], masks, strict=True)]
            loss: torch.Tensor = super().training_step(model, inputs, *more, **options)
            self.parts.append(float(loss.double()))
            return loss

    model, processor = load_vlm("pocket:base", "float32")
    pattern = rf".*language_model.*({'|'.join(LORA['targets']['language_model'])})"
    adapters = LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], lora_dropout=0.0, target_modules=pattern)
    trainer = Recording(
        model=model,
        args=SFTConfig(
            output_dir=str(target),
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=BATCH // MICRO,
            num_train_epochs=1,
            max_length=None,
            learning_rate=SECTION["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=SECTION["clip_norm"],
            optim="adamw_torch",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=trl_dataset(rows()),
        processing_class=processor,
        peft_config=adapters if lora else None,
    )
    draw_adapters(trainer.model)
    trainer.train()
    per_step = BATCH // MICRO
    losses = [sum(trainer.parts[at : at + per_step]) for at in range(0, len(trainer.parts), per_step)]
    write_result(target.with_suffix(".json"), {"losses": losses, "ids": [sorted(trainer.ids)]})
    if lora:
        save_adapters(trainer.model, target)


def adapters_of(model: Any) -> dict[str, Any]:
    """Adapter parameters by the name of their layer in the bare model, however it is wrapped."""
    named = ((name.partition("language_model.")[2], own) for name, own in model.named_parameters())
    return {name: own for name, own in named if "lora_" in name}


def draw_adapters(model: Any) -> None:
    """The same first weights in both trainers, drawn by name."""
    import torch

    for name, own in adapters_of(model).items():
        if "lora_A" in name:
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            with torch.no_grad():
                own.copy_(torch.randn(own.shape, generator=draw) / own.shape[1] ** 0.5)


def save_adapters(model: Any, target: Path) -> None:
    """As safetensors beside the result."""
    from safetensors.torch import save_file

    tensors = {name: own.detach().clone() for name, own in adapters_of(model).items()}
    save_file(tensors, target.with_suffix(".safetensors"))


if __name__ == "__main__":
    main()
