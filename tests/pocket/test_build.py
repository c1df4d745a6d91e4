"""A build goes on where it stopped, and gives the same weights as one that was not disturbed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from adamllm_ray.pocket import build
from adamllm_ray.training.collate import Batch


class Line(torch.nn.Module):
    """A model of two numbers, so that the test is about the build and not about learning."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x):
        return SimpleNamespace(loss=(self.layer(x) - x.sum(-1, keepdim=True)).square().mean())


class Numbers:
    """Batches of step n depend on n."""

    steps = 12

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def load(self, step):
        if step == self.stop_at:
            raise RuntimeError("stopped")
        return [Batch({"x": torch.randn(8, 2, generator=torch.Generator().manual_seed(step))}, 8.0)]


@pytest.mark.timeout(120)
def test_training_continues_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHECKPOINT_EVERY", 4)
    section = build._section(8, 0.05)
    whole, broken, resumed = Line(), Line(), Line()
    loss = build._run(tmp_path / "whole", "line", whole, section, Numbers())
    with pytest.raises(RuntimeError, match="stopped"):
        build._run(tmp_path / "broken", "line", broken, section, Numbers(stop_at=9))
    newest = json.loads((tmp_path / "broken" / "checkpoints" / "line" / "newest.json").read_text())
    assert newest["step"] in (4, 8)
    assert build._run(tmp_path / "broken", "line", resumed, section, Numbers()) == loss
    assert torch.equal(whole.layer.weight, resumed.layer.weight)


def test_for_a_gpu_examples_are_made_by_several_processes_in_order(monkeypatch):
    monkeypatch.setattr(build.os, "cpu_count", lambda: 3)
    for device, start in (("cpu", 0), ("cuda", 0), ("cuda", 5)):
        fed = build._fed(torch.device(device), Numbers(), start)
        assert isinstance(fed, Numbers) == (device == "cpu")
        assert fed.steps == Numbers.steps
        for step in range(start, fed.steps):
            assert torch.equal(fed.load(step)[0].inputs["x"], Numbers().load(step)[0].inputs["x"])


def test_a_part_is_made_once_for_the_same_code(tmp_path):
    made = []
    for _ in range(2):
        build._part(tmp_path, "thing", lambda folder: made.append(folder) or {"n": 1})
    assert len(made) == 1
    marker = tmp_path / "thing" / "done.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"code": "older"}))
    build._part(tmp_path, "thing", lambda folder: made.append(folder) or {"n": 2})
    assert len(made) == 2


def test_what_was_not_measured_is_not_shipped():
    from typer.testing import CliRunner

    from adamllm_ray.pocket.command import pocket

    done = CliRunner().invoke(pocket, ["build", "--train-only", "--install"])
    assert done.exit_code == 2
    assert "leave one out" in done.output
