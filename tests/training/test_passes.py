"""Two stages, and a synthesizer tuned on seed data, through real Ray Train workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from adamllm_ray.config import parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.models.checkpoint import load_vlm
from adamllm_ray.training.seed.build import seed
from adamllm_ray.training.trainer import synthesizer, train
from tests.training.conftest import ROWS, finished_synthesis, synthesized_rows, training_config
from tests.training.seed.files import pictures, records, write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("private_ray")]


def _changed(first: Path | str, second: Path | str) -> set[str]:
    """Parts of the model in which two folders differ."""
    from adamllm_ray.models.families import family_of

    before, after = (load_vlm(folder, "float32")[0] for folder in (first, second))
    family, weights = family_of("llava_next"), dict(after.named_parameters())
    return {family.part_of(name) for name, tensor in before.named_parameters() if not tensor.equal(weights[name])}


def test_two_stages_train_the_projector_on_captions_and_then_everything_on_tasks(
    tmp_path: Path, tiny_vlm: Path
) -> None:
    run = finished_synthesis(tmp_path, synthesized_rows())
    config = training_config(tmp_path, tiny_vlm, workers=1, epochs=1, recipe="two_stage")
    manifest = train(config, run)
    first = run.stage("train_captions").manifest()
    assert first is not None
    assert (first.verdicts["ok"], manifest.verdicts["ok"], manifest.verdicts["not_drawn"]) == (ROWS - 2, 16, 6)
    assert {kind for loss in first.extra["losses"] for kind in loss["kinds"]} == {"caption"}
    assert {kind for loss in manifest.extra["losses"] for kind in loss["kinds"]} == {"task"}
    assert _changed(tiny_vlm, first.extra["model"]) == {"projector"}
    assert _changed(first.extra["model"], manifest.extra["model"]) == {"projector", "language_model", "vision_tower"}
    assert train(config, run) == manifest  # nothing is done again


def test_a_synthesizer_is_tuned_and_the_run_goes_on_with_it(tmp_path: Path, tiny_vlm: Path) -> None:
    pictures(tmp_path, 16)
    training = training_config(tmp_path, tiny_vlm, workers=1, epochs=2).training.model_dump(mode="json")
    section = write(tmp_path, records(16), dev_share=0.0, base=str(tiny_vlm)).model_dump(mode="json")
    config = parse_config(
        {
            "run": {"output": str(tmp_path / "run")},
            "seed": section | {"training": training},
            "models": {"base": str(tiny_vlm), "synthesizer": "tuned"},
        }
    )
    run = RunFolder.of(config.run)
    seed(config, run)
    manifest = synthesizer(config, run)
    assert manifest.extra["model"] == config.models.synthesizer
    assert manifest.verdicts == {"ok": 16}
    losses = manifest.extra["losses"]
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert set(losses[0]["kinds"]) == {"question", "answer"}
    assert _changed(tiny_vlm, manifest.extra["model"]) == {"projector", "language_model", "vision_tower"}
