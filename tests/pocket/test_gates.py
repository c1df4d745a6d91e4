"""The shipped models still do what figures.json says, checked on a sample in real vLLM."""

import json

import pytest

from adamllm_ray.models.checkpoint import resolve_model
from adamllm_ray.pocket.build import MODELS, WEIGHTS

MARGIN = 0.15  # a sample of 60 or more against the figure of a few hundred: three standard errors and some


@pytest.fixture(scope="module")
def figures():
    return json.loads((WEIGHTS / "figures.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_are_usable_folders(name):
    assert resolve_model(f"pocket:{name}")


@pytest.mark.slow
def test_synthesizer_sample(figures):
    from adamllm_ray.pocket.gates import measure_synthesizer

    measured = measure_synthesizer(WEIGHTS / "synthesizer", 60)
    assert measured["parsed"] == pytest.approx(figures["synthesizer"]["parsed"], abs=MARGIN)
    assert measured["right"] == pytest.approx(figures["synthesizer"]["right"], abs=MARGIN)


@pytest.mark.slow
def test_base_sample(figures):
    from adamllm_ray.pocket.gates import measure_base

    measured = measure_base(WEIGHTS / "base", 40)
    assert measured["accuracy"] == pytest.approx(figures["base"]["accuracy"], abs=MARGIN)
