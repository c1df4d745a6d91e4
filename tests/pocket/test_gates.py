"""The shipped models still do what figures.json says, checked on a sample in real vLLM."""

import json
import subprocess
import sys
from typing import Any

import pytest

from adamllm_ray.models.checkpoint import resolve_model
from adamllm_ray.pocket.build import MODELS, WEIGHTS
from adamllm_ray.pocket.gates import gates

MARGIN = 0.15  # a sample of 60 or more against the figure of a few hundred: three standard errors and some


@pytest.fixture(scope="module")
def figures():
    return json.loads((WEIGHTS / "figures.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_are_usable_folders(name):
    assert resolve_model(f"pocket:{name}")


def test_shipped_models_passed_their_gates(figures):
    """All of them; a gate is never moved."""
    assert figures["gates"] == gates(figures)
    assert [name for name, one in figures["gates"].items() if not one["holds"]] == []


def in_a_process(call: str) -> dict[str, Any]:
    """Figures from a process of their own: vLLM inspects every module that is loaded, and tests load odd ones."""
    code = f"import json; from adamllm_ray.pocket.gates import *; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


@pytest.mark.slow
def test_synthesizer_sample(figures):
    measured = in_a_process(f"measure_synthesizer(Path({str(WEIGHTS / 'synthesizer')!r}), 60)")
    assert measured["parsed"] == pytest.approx(figures["synthesizer"]["parsed"], abs=MARGIN)
    assert measured["right"] == pytest.approx(figures["synthesizer"]["right"], abs=MARGIN)


@pytest.mark.slow
def test_base_sample(figures):
    measured = in_a_process(f"measure_base(Path({str(WEIGHTS / 'base')!r}), 40)")
    assert measured["accuracy"] == pytest.approx(figures["base"]["accuracy"], abs=MARGIN)
