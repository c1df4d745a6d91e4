"""The model card: valid for the hub, nothing private in it, and the manifest signs every version of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verify import verify
from adamllm_ray.models.card import CARD, card, refresh_card
from adamllm_ray.models.checkpoint import model_fingerprint

REVISION = "0" * 40
CELL = {"n": 40, "accuracy": 0.75, "lo": 0.6, "hi": 0.9}
SCORES: dict[str, Any] = {
    "types": ["water_side"],
    "models": {name: {"overall": CELL, "average": CELL, "types": {"water_side": CELL}} for name in ("base", "adapted")},
    "difference": {"overall": {"value": 0.25, "lo": 0.1, "hi": 0.4, "p": 0.01}},
}


def _trained(folder: Path, base: str = "/secret/models/base") -> tuple[RunConfig, RunFolder]:
    config = parse_config(
        {
            "run": {"name": "x-rays", "output": str(folder / "run")},
            "data": {"path": "/secret/pairs.json"},
            "models": {"base": base, "synthesizer": f"team/synth@{REVISION}", "judge": "/secret/models/judge"},
            "training": {"global_batch": 8},
        }
    )
    run = RunFolder.of(config.run)
    run.stage("ingest").begin({"x": 1})
    run.stage("ingest").finish(rows_in=12, verdicts={"ok": 10, "image_missing": 2}, seconds=1)
    stage = run.stage("train")
    stage.begin({"model": "f" * 32})
    model = Path(stage.path) / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llava_next"}))
    (model / "model.safetensors").write_bytes(b"weights")
    kinds = {"caption": [1.5, 10], "task": [0.5, 30]}
    losses = [{"step": step, "loss": 1 / step, "lr": 1e-4, "grad_norm": 1.0, "kinds": kinds} for step in (1, 2, 3)]
    part = {"part": "projector", "parameters": 5000, "trainable": 5000, "learning_rate": 2e-5, "weight_decay": 0.0}
    shares = {"both": {"requested": 0.6, "realised": 0.61, "count": 6}}
    extra = {"steps": 3, "examples": 10, "losses": losses, "parts": [part], "shares": shares}
    stage.finish(rows_in=12, verdicts={"ok": 10, "image_missing": 2}, extra=extra, seconds=1)
    return config, run


def _evaluated(run: RunFolder, adapted: str) -> None:
    stage = run.stage("evaluate")
    stage.begin({"models": {"adapted": adapted}})
    stage.finish(rows_in=0, verdicts={}, extra={"scores": SCORES}, seconds=1)


def test_card_is_valid_for_the_hub_and_says_what_happened(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    config, run = _trained(tmp_path, base=f"team/vlm@{REVISION}")
    manifests = {name: run.stage(name).manifest() for name in ("ingest", "train")}
    read = ModelCard(card(config, manifests, SCORES))  # type: ignore[arg-type]
    assert read.data.base_model == "team/vlm"
    assert read.data.pipeline_tag == "image-text-to-text"
    assert read.data.license == "other"
    assert read.data.license_name == "license-of-the-base-model"
    (result,) = read.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 75.0)
    for words in ("| image missing | 2 |", "| both | 60.0 % | 61.0 % | 6 |", "| global_batch | 8 |", "| torch |"):
        assert words in read.text
    assert "| caption | 1.5000 |" in read.text
    assert "| water side | 40 | 75.0 (60.0 to 90.0) | 75.0 (60.0 to 90.0) |" in read.text


def test_nothing_private_is_in_it(tmp_path: Path) -> None:
    config, run = _trained(tmp_path)
    refresh_card(config, run)
    text = (Path(run.stage("train").path) / CARD).read_text("utf-8")
    assert "a private folder" in text
    assert f"team/synth@{REVISION}" in text
    for private in ("/secret", str(tmp_path)):
        assert private not in text


def test_every_version_is_signed(tmp_path: Path) -> None:
    """Training writes it, evaluation adds its scores; the weights' fingerprint and the stage's identity stay."""
    config, run = _trained(tmp_path)
    stage = run.stage("train")
    before, weights = stage.manifest(), model_fingerprint(f"{stage.path}/model")
    assert before is not None
    first = refresh_card(config, run)
    assert refresh_card(config, run) == first == stage.manifest()
    assert not verify(stage)
    _evaluated(run, weights)
    second = refresh_card(config, run)
    assert "75.0 (60.0 to 90.0)" in (Path(stage.path) / CARD).read_text("utf-8")
    assert second.files != first.files
    assert not verify(stage)
    assert second.identity == before.identity
    assert model_fingerprint(f"{stage.path}/model") == weights


def test_a_card_that_was_written_but_not_signed_is_mended(tmp_path: Path) -> None:
    config, run = _trained(tmp_path)
    refresh_card(config, run)
    weights = model_fingerprint(f"{run.stage('train').path}/model")
    manifest = (Path(run.stage("train").path) / "manifest.json").read_bytes()
    _evaluated(run, weights)
    refresh_card(config, run)
    (Path(run.stage("train").path) / "manifest.json").write_bytes(manifest)  # as if killed between the two writes
    assert verify(run.stage("train"))
    refresh_card(config, run)
    assert not verify(run.stage("train"))


@pytest.mark.parametrize("adapted", ["another model's", None])
def test_scores_of_another_model_are_left_out(tmp_path: Path, adapted: str | None) -> None:
    config, run = _trained(tmp_path)
    _evaluated(run, adapted or "")
    refresh_card(config, run)
    assert "Not evaluated" in (Path(run.stage("train").path) / CARD).read_text("utf-8")
