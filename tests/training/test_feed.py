"""Data workers give the batches that the training process would make itself, also when one of them is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from adamllm_ray.config import ImageLimits
from adamllm_ray.models.checkpoint import load_processor
from adamllm_ray.training.catalog import build_catalog, write_catalog
from adamllm_ray.training.collate import Batch
from adamllm_ray.training.feed import FedBatches
from adamllm_ray.training.lengths import Lengths
from adamllm_ray.training.stream import open_batches
from tests.training.conftest import finished_synthesis, synthesized_rows, training_config


@pytest.mark.slow
def test_batches_are_the_same_and_in_order_whatever_dies(tmp_path: Path, tiny_vlm: Path, private_ray: None) -> None:
    run = finished_synthesis(tmp_path, synthesized_rows())
    stage, config = run.stage("train"), training_config(tmp_path, tiny_vlm, epochs=6)
    stage.begin({})
    measure = Lengths(load_processor(tiny_vlm), ImageLimits())
    write_catalog(build_catalog(run.stage("synthesize"), {}, measure), stage)
    opening: dict[str, Any] = {"config": config.model_dump_json(), "output": run.uri, "base": str(tiny_vlm)}
    opening |= {"rank": 1, "world": 2}
    own = open_batches(**opening)
    fed = FedBatches(own.steps, opening, workers=1)
    assert own.steps > 12
    for step in range(3, own.steps):  # as after a restart
        _same(fed.load(step), own.load(step))
        if step == 5:
            makers = [process for process in psutil.Process().children(recursive=True) if _is_maker(process)]
            assert makers
            for process in makers:
                os.kill(process.pid, signal.SIGKILL)


def _is_maker(process: psutil.Process) -> bool:
    try:
        return "_Maker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _same(found: list[Batch], wanted: list[Batch]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.ids, one.weight, one.refused) == (other.ids, other.weight, other.refused)
        assert one.inputs.keys() == other.inputs.keys()
        assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
