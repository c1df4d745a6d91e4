"""The engine without DeepSpeed trains as DeepSpeed does on one process, and refuses what it cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import TrainingSection
from adamllm_ray.errors import TrainingError
from adamllm_ray.training.engines import PlainEngine, deepspeed_engine, engine_config
from tests.training.conftest import picture

SECTION = {"global_batch": 4, "micro_batch": 2, "learning_rate": 3e-3, "weight_decay": 0.1, "clip_norm": 0.5}


def trained(base: Path, opener: Any, **more: Any) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of six steps over twelve mixed examples, two accumulated micro-batches each."""
    import torch

    from adamllm_ray.models.chat import ChatFormat, Turn
    from adamllm_ray.models.checkpoint import load_vlm
    from adamllm_ray.training.batches import ExampleBatches
    from adamllm_ray.training.collate import Collator
    from adamllm_ray.training.conversations import conversation_example, text_example
    from adamllm_ray.training.loop import StepLoop
    from adamllm_ray.training.parts import prepare_parts

    section = TrainingSection.model_validate(SECTION | {"epochs": 2} | more)
    torch.manual_seed(0)
    model, processor = load_vlm(base, "float32" if section.precision == "fp32" else "bfloat16")
    chat = ChatFormat(processor.tokenizer)
    examples = [text_example(processor.tokenizer, f"{number} 0 1 2", id=f"t{number}") for number in range(4)]
    for number in range(8):
        turns = [Turn("user", "Describe the image.", image=True), Turn("assistant", f"a red circle {number} " * 2)]
        examples.append(conversation_example(chat, turns, "assistant", id=f"i{number}", image=picture(number)))
    source = ExampleBatches(examples, Collator(processor, 512, always_image=True), section)
    loop = StepLoop(
        model, section, steps=source.steps, groups=prepare_parts(model, section).groups, seed=1, engine=opener
    )
    reports = loop.run(source)
    return [report.loss for report in reports], [report.grad_norm for report in reports]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "close"),
    [
        ({"precision": "fp32", "zero_stage": 2}, 1e-6),
        ({"precision": "fp32", "zero_stage": 0, "lora": {"rank": 4}}, 1e-6),
        ({"precision": "bf16", "zero_stage": 1}, 2e-3),
    ],
)
def test_same_losses_as_deepspeed_on_one_process(settings: dict[str, Any], close: float, tiny_vlm: Path) -> None:
    (plain, norms), (deep, deep_norms) = (
        trained(tiny_vlm, opener, **settings) for opener in (PlainEngine, deepspeed_engine)
    )
    assert plain == pytest.approx(deep, rel=close)
    assert norms == pytest.approx(deep_norms, rel=10 * close)
    assert plain[-1] < plain[0]


def test_what_needs_deepspeed_is_refused() -> None:
    import torch

    model = torch.nn.Linear(2, 2)
    groups = [{"params": list(model.parameters()), "lr": 1e-3, "weight_decay": 0.0}]
    plain = TrainingSection.model_validate({"precision": "fp32"})
    with pytest.raises(TrainingError, match=r"2 workers.*DeepSpeed"):
        PlainEngine(model, plain, groups, world=2)
    offload = TrainingSection.model_validate({"deepspeed": {"zero_optimization": {"offload_optimizer": {}}}})
    with pytest.raises(TrainingError, match=r"training.deepspeed.*DeepSpeed"):
        PlainEngine(model, offload, groups, world=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plain_engine_goes_on_from_its_checkpoint(precision: str, tmp_path: Path) -> None:
    import torch

    section = TrainingSection.model_validate({"global_batch": 4, "precision": precision, "learning_rate": 0.05})
    batches = [torch.randn(4, 3, generator=torch.Generator().manual_seed(number)) for number in range(8)]

    def engine() -> PlainEngine:
        torch.manual_seed(1)
        model = torch.nn.Linear(3, 1)
        groups = [{"params": list(model.parameters()), "lr": 0.05, "weight_decay": 0.1}]
        return PlainEngine(model, section, groups, world=1)

    def take(plain: PlainEngine, steps: range) -> None:
        for number in steps:
            plain.backward(plain(input=batches[number].to(next(plain.module.parameters()).dtype)).square().mean())
            plain.step()

    whole, before, after = engine(), engine(), engine()
    take(whole, range(8))
    take(before, range(5))
    before.save_checkpoint(str(tmp_path), tag="state")
    assert after.load_checkpoint(str(tmp_path / "none"), tag="state") == (None, {})
    path, _ = after.load_checkpoint(str(tmp_path), tag="state")
    assert path == str(tmp_path / "state")
    take(after, range(5, 8))
    assert torch.equal(whole.module.weight, after.module.weight)


def test_deepspeed_keys_are_merged_over_ours() -> None:
    section = TrainingSection.model_validate({"deepspeed": {"zero_optimization": {"overlap_comm": True}}})
    config = engine_config(section, 1)
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}


def test_the_step_loop_needs_torch_alone() -> None:
    """What benchmarks/gpu/train_mfu.py relies on, where only torch and transformers are installed."""
    code = """
import sys
for name in ("ray", "vllm", "deepspeed", "pydantic", "pyarrow", "boto3", "peft"):
    sys.modules[name] = None  # an import of it raises ImportError
import adamllm_ray.training.loop, adamllm_ray.training.batches, adamllm_ray.training.packing
import adamllm_ray.training.parts
"""
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
