"""Losses do not depend on the number of workers or the accumulation; a restart continues as if nothing had been."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adamllm_ray.config import TrainingSection
from adamllm_ray.training.collate import Batch
from adamllm_ray.training.engines import PlainEngine
from adamllm_ray.training.loop import LossNotFinite, StepLoop, schedule_factor
from adamllm_ray.training.reshard import to_universal

pytestmark = pytest.mark.slow


def run(
    base: Path, folder: Path, world: int, start: int = 0, universal: bool = False, **section: Any
) -> dict[str, Any]:
    """Train in ``world`` fresh processes. Returns the losses and a sum over the final weights."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spec = json.dumps({"section": section, "folder": str(folder), "start": start, "universal": universal})
    processes = []
    for rank in range(world):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        env |= {key: str(value) for key, value in own.items()} if world > 1 else {}
        command = [sys.executable, "-m", "tests.training.loop_process", spec, str(base)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=280)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, errors[0][-2000:]
    result: dict[str, Any] = json.loads((folder / f"result-{world}-{start}.json").read_text())
    return result


@pytest.fixture(scope="module")
def one(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process, one batch per step, no sharding: what the others are compared with."""
    return run(tiny_vlm, tmp_path_factory.mktemp("one"), 1, micro_batch=8, zero_stage=0)


def test_two_workers_with_accumulation_and_one_without_agree(
    one: dict[str, Any], tiny_vlm: Path, tmp_path: Path
) -> None:
    two = run(tiny_vlm, tmp_path, 2, micro_batch=2, zero_stage=2)
    assert len(one["losses"]) == 4
    assert one["losses"][-1] < one["losses"][0]
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert two["total"] == pytest.approx(one["total"], rel=1e-5)
    continued = run(tiny_vlm, tmp_path, 2, start=2, micro_batch=2, zero_stage=2)
    assert continued["losses"] == two["losses"][2:]  # bit for bit
    assert continued["total"] == two["total"]


def test_zero_3_agrees_too(one: dict[str, Any], tiny_vlm: Path, tmp_path: Path) -> None:
    whole = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # or it would shard nothing this small
    three = run(tiny_vlm, tmp_path, 2, micro_batch=2, zero_stage=3, deepspeed=whole)
    assert three["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert three["total"] == pytest.approx(one["total"], rel=1e-5)
    to_universal(tmp_path, tmp_path / "universal")
    alone = run(tiny_vlm, tmp_path, 1, start=2, universal=True, micro_batch=2, zero_stage=3, deepspeed=whole)
    assert alone["losses"] == pytest.approx(one["losses"][2:], rel=2e-5)


def test_packed_and_budgeted_steps_agree_too(one: dict[str, Any], tiny_vlm: Path, tmp_path: Path) -> None:
    packed = run(tiny_vlm, tmp_path, 2, token_budget=256, max_length=256, packing=True, zero_stage=2)
    assert packed["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert packed["total"] == pytest.approx(one["total"], rel=1e-5)
    to_universal(tmp_path, tmp_path / "universal")
    # another number of workers, and padded instead of packed, from the same checkpoint
    alone = run(tiny_vlm, tmp_path, 1, start=2, universal=True, token_budget=256, max_length=256, zero_stage=2)
    assert alone["losses"] == pytest.approx(one["losses"][2:], rel=2e-5)
    assert alone["total"] == pytest.approx(one["total"], rel=1e-5)


class Given:
    """Batches as they are given: one micro-batch per weight, on which the model below answers with ``loss``."""

    def __init__(self, *steps: list[tuple[float, float]]) -> None:
        self.given, self.steps = steps, len(steps)

    def load(self, step: int) -> list[Batch]:
        return [Batch({"loss": torch.tensor(loss)}, weight, ["a"] * bool(weight)) for loss, weight in self.given[step]]


class Answering(torch.nn.Module):
    """Its loss is its one weight times what the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, loss: torch.Tensor) -> Any:
        return type("Output", (), {"loss": self.weight * loss})


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ([(1.0, 4.0), (math.nan, 4.0)], "step 2: the loss is nan"),
        ([(math.inf, 4.0)], "step 2: the loss is inf"),
        ([(1.0, 0.0), (1.0, 0.0)], "step 2: no token of the global batch carries loss"),  # all labels masked
        ([], "step 2: no token of the global batch carries loss"),  # nothing at all
    ],
)
def test_no_step_is_taken_on_a_loss_that_is_none(step: list[tuple[float, float]], words: str) -> None:
    """Reliability test 48: it stops, says where, and has not touched the weights with that step."""
    section = TrainingSection.model_validate({"global_batch": 8, "precision": "fp32", "learning_rate": 0.1})
    model = Answering()
    loop = StepLoop(model, section, steps=3, engine=PlainEngine)
    reached: list[tuple[int, float]] = []
    with pytest.raises(LossNotFinite, match=words):
        loop.run(
            Given([(1.0, 4.0)], step, [(1.0, 4.0)]),
            on_step=lambda report: reached.append((report.step, model.weight.item())),
        )
    assert [number for number, _ in reached] == [1]
    assert model.weight.item() == reached[0][1] != 1.0


def test_a_micro_batch_without_labels_counts_for_nothing() -> None:
    section = TrainingSection.model_validate({"global_batch": 8, "precision": "fp32", "learning_rate": 0.1})
    losses = [
        StepLoop(Answering(), section, steps=2, engine=PlainEngine).run(Given(*[[(2.0, 4.0), *filler]] * 2))
        for filler in ([], [(9.0, 0.0)])
    ]
    assert [report.loss for report in losses[0]] == [report.loss for report in losses[1]]


def test_schedule() -> None:
    section = TrainingSection.model_validate({"warmup_share": 0.1, "min_lr_share": 0.1})
    factors = [schedule_factor(section, step, 100) for step in range(100)]
    assert factors[:2] == pytest.approx([0.1, 0.2])
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55)
    assert factors[99] == pytest.approx(0.1, abs=0.01)
    linear = TrainingSection.model_validate({"warmup_share": 0.0, "schedule": "linear"})
    assert schedule_factor(linear, 50, 100) == pytest.approx(0.5)
    constant = TrainingSection.model_validate({"warmup_share": 0.0, "schedule": "constant"})
    assert schedule_factor(constant, 99, 100) == 1.0
