"""Examples/s, tokens/s and MFU of training on one GPU, random weights: the step loop itself, without Ray around it.

    python benchmarks/gpu/train_mfu.py                    on a GPU, about four minutes
    python benchmarks/gpu/train_mfu.py --tiny --eager     the same code on a CPU, a minute; minutes if compiled

Two models, each in a process of its own: all weights of a Qwen2-VL with the dimensions of the 2B one, and LoRA on a
LLaVA-NeXT with those of llama3-llava-next-8b. A row is a 640 x 480 picture and 200 to 600 tokens of text, most of which
carry loss. There are sixteen different pictures, so that the thread that makes batches has no pictures to prepare: in
the product `training.data_workers` do that. The package's collator, batches, parts and loss run, packed and compiled
(``--padded``, ``--eager``: not); the engine is DeepSpeed's where it is installed and `PlainEngine` otherwise
(``--engine``). Needs torch 2.11 and transformers 5.17 with Pillow and torchvision for their image processors; no Ray,
no vLLM, no download. Without pydantic the settings are a plain object, without peft the adapters are a few lines here.

Goals on an H100 or H200, for both models: `mfu` >= 0.45 of the data sheet's dense bf16 rate, `over_paper` > 1:
examples/s over the paper's per A100 (4.5 and 0.77, full training) times the ratio of the cards' rates. FLOPs are
counted by `adamllm_ray.training.flops`, useful work only. On an H200 both goals held (benchmarks/results).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.measure import finish, last_json, say

A100 = 312e12  # dense bf16 FLOP/s
PAPER = {"qwen2_vl_2b": 4.5, "llava_next_8b_lora": 0.77}  # examples/s per A100
WARM_UP = 2  # steps
PICTURES = 16
IMAGE_ID, PAD_ID = 5, 4
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Plan:
    """What is trained: rows per step, tokens per forward pass, words per row, size of the pictures."""

    batch: int = 128  # the paper's
    steps: int = 6
    budget: int = 8192
    text: tuple[int, int] = (200, 600)
    picture: tuple[int, int] = (640, 480)


PLANS = {  # a step of a few seconds each
    "qwen2_vl_2b": Plan(budget=16384),  # about 115 GiB; 80 with 8192
    "llava_next_8b_lora": Plan(batch=32),
}
TINY = Plan(8, 4, 512, (20, 60), (80, 60))


def main() -> None:
    """Each model in a process of its own; print the line."""
    options = _options()
    if options.part:
        print(json.dumps(measure(options)))
        return
    found = {part: _in_process(part) for part in PAPER}
    rates = [one["mfu"] for one in found.values()]
    finish(
        "train_mfu" + ("_tiny" if options.tiny else ""),
        {"mfu": min(rates), "goals": {"mfu": 0.45, "over_paper": 1}, **found},
        hardware_more={"accelerator": found["qwen2_vl_2b"]["device"]},
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models, few rows, CPU")
    parser.add_argument("--steps", type=int, default=None, help=f"optimizer steps after {WARM_UP} of warm-up")
    parser.add_argument("--budget", type=int, default=None, help="tokens of a forward pass")
    parser.add_argument("--padded", action="store_true", help="padded batches instead of joined sequences")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--attention", default="sdpa", help="sdpa, flash_attention_2, flex_attention, ...")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--engine", choices=["auto", "plain", "deepspeed"], default="auto")
    parser.add_argument("--part", choices=[*PAPER], help="only this model, and no line for the results")
    return parser.parse_args()


def _in_process(part: str) -> dict[str, Any]:
    say(f"{part} ...")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = last_json(done.stdout)
    say(f"{part}: {found['examples_per_s']} examples/s, mfu {found['mfu']}")
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train a model for some steps and time all but the first ones."""
    import torch

    from adamllm_ray.training import engines
    from adamllm_ray.training.batches import ExampleBatches
    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.flops import flop_rates
    from adamllm_ray.training.loop import StepLoop
    from adamllm_ray.training.packing import rope_index

    plan = TINY if options.tiny else PLANS[options.part]
    steps = options.steps or plan.steps
    section = settings(options, plan)
    config, processor = (llava_next if "llava" in options.part else qwen2_vl)(options.tiny)
    model = build(config, options, section)
    groups = trainable(model, section)
    made = rows((WARM_UP + steps) * plan.batch, plan, config.get_text_config().vocab_size)
    collator = Collator(
        processor,
        section.max_length,
        limits=_Limits(),  # type: ignore[arg-type]
        packing=section.packing,
        rope=rope_index(config) if section.packing else None,
        always_image=True,
    )
    source = Counted(ExampleBatches(made, collator, section), flop_rates(model))
    openers = {"auto": engines.open_engine, "plain": engines.PlainEngine, "deepspeed": engines.deepspeed_engine}
    loop = StepLoop(model, section, steps=source.steps, groups=groups, engine=openers[options.engine])
    clock: list[float] = []
    reports = loop.run(source, on_step=lambda _: clock.append(now()))
    timed, seconds = reports[WARM_UP:], clock[-1] - clock[WARM_UP - 1]
    examples = sum(report.examples for report in timed)
    flops, peak = sum(source.flops[WARM_UP:]) / seconds, peak_of()
    rate, against = examples / seconds, PAPER[options.part] * peak["flops"] / A100
    return {
        "mfu": round(flops / peak["flops"], 4),
        "examples_per_s": round(rate, 3),
        "tokens_per_s": round(sum(report.inputs for report in timed) / seconds),
        "over_paper": None if options.tiny else round(rate / against, 3),
        "tflops": round(flops / 1e12, 3),
        "peak": peak,
        "padding": round(sum(report.padding for report in timed) / len(timed), 4),
        "tokens_per_example": round(sum(report.inputs for report in timed) / examples),
        "parameters": sum(own.numel() for own in model.parameters()),
        "trainable": sum(own.numel() for group in groups for own in group["params"]),
        "first_loss": round(reports[0].loss, 3),
        "last_loss": round(reports[-1].loss, 3),
        "steps": len(timed),
        "seconds": round(seconds, 1),
        "engine": type(loop.engine).__name__,
        "gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if torch.cuda.is_available() else 0,
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
    }


def settings(options: argparse.Namespace, plan: Plan) -> Any:
    """The training section: `TrainingSection`, or without pydantic an object that answers None to what is not here."""
    part = {"train": True, "learning_rate": None, "weight_decay": None}
    layers = part | {"gradient_checkpointing": options.checkpointing}
    lora = "lora" in options.part
    adapters: dict[str, Any] = {"rank": 16, "alpha": 32.0, "dropout": 0.0, "modules_to_save": []}
    adapters["targets"] = {"language_model": LORA_TARGETS, "projector": [], "vision_tower": []}
    tree: dict[str, Any] = {
        "global_batch": plan.batch,
        "micro_batch": 1,
        "token_budget": options.budget or plan.budget,
        "packing": not options.padded,
        "compile": not options.eager,
        "max_length": options.budget or plan.budget,
        "epochs": 1,
        "max_steps": None,
        "learning_rate": 1e-5,
        "schedule": "cosine",
        "warmup_share": 0.1,
        "min_lr_share": 0.0,
        "weight_decay": 0.1,
        "betas": (0.9, 0.999),
        "clip_norm": 1.0,
        "precision": "fp32" if options.tiny else "bf16",
        "zero_stage": 1,
        "deepspeed": {},
        "language_model": layers,
        "projector": part | {"train": not lora},
        "vision_tower": layers | {"train": not lora},
        "lora": adapters if lora else None,
    }
    try:
        from adamllm_ray.config import TrainingSection
    except ImportError:
        return _Loose.of(tree)
    return TrainingSection.model_validate(tree)


class _Loose(SimpleNamespace):
    """A setting that is not given is off."""

    def __getattr__(self, name: str) -> None:
        return None

    @classmethod
    def of(cls, tree: dict[str, Any]) -> _Loose:
        return cls(
            **{key: cls.of(value) if isinstance(value, dict) and value else value for key, value in tree.items()}
        )


class _Limits:
    """What ingest allows a picture to be, without the configuration."""

    max_bytes, max_pixels, min_side, max_aspect = 1 << 26, 1 << 26, 8, 32.0


class Counted:
    """A `BatchSource` that notes the useful FLOPs of each step."""

    def __init__(self, inner: Any, rates: Any) -> None:
        self.inner, self.rates, self.steps = inner, rates, inner.steps
        self.flops: list[float] = []

    def load(self, step: int) -> Any:
        from adamllm_ray.training.flops import batch_flops

        batches = self.inner.load(step)
        self.flops.append(sum(batch_flops(self.rates, batch) for batch in batches))
        return batches


def build(config: Any, options: argparse.Namespace, section: Any) -> Any:
    """The model with random weights on its device."""
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    dtype = torch.bfloat16 if section.precision == "bf16" else torch.float32
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=options.attention)
    return model


def trainable(model: Any, section: Any) -> list[dict[str, Any]]:
    """Freeze, attach adapters, group: as the product does, which needs peft for LoRA."""
    from adamllm_ray.training.parts import prepare_parts

    if section.lora is not None:
        try:
            import peft  # noqa: F401
        except ImportError:
            return bare_lora(model, section)
    return prepare_parts(model, section).groups


def bare_lora(model: Any, section: Any) -> list[dict[str, Any]]:
    """peft's LoRA in a few lines: W x + B A x alpha / rank, B zero at first."""
    import torch

    class Adapted(torch.nn.Module):
        def __init__(self, base: Any) -> None:
            super().__init__()
            own = {"bias": False, "dtype": base.weight.dtype, "device": base.weight.device}
            self.base_layer, self.in_features = base, base.in_features
            self.lora_A = torch.nn.Linear(base.in_features, section.lora.rank, **own)
            self.lora_B = torch.nn.Linear(section.lora.rank, base.out_features, **own)
            torch.nn.init.zeros_(self.lora_B.weight)

        def forward(self, x: Any) -> Any:
            return self.base_layer(x) + self.lora_B(self.lora_A(x)) * (section.lora.alpha / section.lora.rank)

    for own in model.parameters():
        own.requires_grad_(False)
    found = [
        name for name, _ in model.named_modules() if "language_model." in name and name.endswith(tuple(LORA_TARGETS))
    ]
    for name in found:
        place, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(place), leaf, Adapted(model.get_submodule(name)))
    return [{"params": [own for own in model.parameters() if own.requires_grad]}]


def rows(count: int, plan: Plan, vocabulary: int) -> list[Any]:
    """Examples of random ids: an image, 30 tokens of question, the rest answer, which carries loss."""
    import numpy as np
    from PIL import Image

    from adamllm_ray.training.conversations import IGNORE, Example

    draw, pixels, pictures, made = random.Random(0), np.random.default_rng(0), [], []
    for _ in range(PICTURES):
        buffer = io.BytesIO()
        noise = pixels.integers(0, 255, (plan.picture[1] // 8, plan.picture[0] // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(plan.picture).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    for number in range(count):
        words = [draw.randrange(10, vocabulary) for _ in range(draw.randint(*plan.text))]
        asked = min(30, len(words) // 4)
        labels = [IGNORE] * (2 + asked) + words[asked:]
        made.append(Example(str(number), [1, IMAGE_ID, *words], labels, pictures[number % PICTURES]))
    return made


def now() -> float:
    """Seconds, when the device is done with what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_of() -> dict[str, Any]:
    """The device's FLOP/s: by its data sheet if it is known, else by a matrix product; that product's in any case."""
    import torch

    from adamllm_ray.training.flops import known_peak

    gpu = torch.cuda.is_available()
    side, dtype = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    a, b = (torch.randn(side, side, device="cuda" if gpu else "cpu", dtype=dtype) for _ in range(2))
    times = []
    for _ in range(13):
        began = now()
        a @ b
        times.append(now() - began)
    product = 2 * side**3 / sorted(times[3:])[5]
    known = known_peak(torch.cuda.get_device_name(0)) if gpu else None
    return {"flops": known or product, "from": "data sheet" if known else "matrix product", "product": product}


def llava_next(tiny: bool) -> tuple[Any, Any]:
    """(config, processor) of llama3-llava-next-8b's dimensions, or small ones."""
    import tempfile

    from transformers import AutoConfig, AutoProcessor

    from benchmarks.gpu.synthesis_gpu import TINY as SMALL
    from benchmarks.gpu.synthesis_gpu import Scale, write_vlm

    with tempfile.TemporaryDirectory() as folder:
        write_vlm(folder, SMALL if tiny else Scale())
        return AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def qwen2_vl(tiny: bool) -> tuple[Any, Any]:
    """(config, processor) of Qwen2-VL-2B's dimensions, or small ones."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl import Qwen2VLImageProcessorPil

    words = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "<video>", PAD_ID: "<pad>", IMAGE_ID: "<image>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({word: id for id, word in words.items()}, unk_token="<unk>")),
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    text = {
        "vocab_size": 1000 if tiny else 151936,
        "hidden_size": 128 if tiny else 1536,
        "intermediate_size": 256 if tiny else 8960,
        "num_hidden_layers": 2 if tiny else 28,
        "num_attention_heads": 4 if tiny else 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [4, 6, 6] if tiny else [16, 24, 24],
        },
        "pad_token_id": PAD_ID,
    }
    vision = {
        "depth": 2 if tiny else 32,
        "embed_dim": 64 if tiny else 1280,
        "hidden_size": text["hidden_size"],
        "num_heads": 2 if tiny else 16,
        "mlp_ratio": 4,
        "patch_size": 14,
    }
    ids = {"image_token_id": IMAGE_ID, "video_token_id": 3, "vision_start_token_id": 6, "vision_end_token_id": 7}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=1280 * 28 * 28)
    return config, Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor())


if __name__ == "__main__":
    main()
