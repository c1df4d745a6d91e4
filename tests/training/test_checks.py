"""Every setting that cannot work is refused before Ray starts, with its field and a fix."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import TrainingSection, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import AdamLLMError, ConfigError, FingerprintMismatch
from adamllm_ray.models.checkpoint import load_vlm
from adamllm_ray.training import trainer
from adamllm_ray.training.checks import check_training, outline
from adamllm_ray.training.parts import parts_table, prepare_parts
from tests.training.conftest import finished_synthesis, synthesized_rows, training_config

FROZEN = {"train": False}
PERSISTENCE = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"global_batch": 9}, r"global_batch \(9\) must be a multiple of micro_batch x workers"),
    ({"language_model": FROZEN, "projector": FROZEN, "vision_tower": FROZEN}, "all frozen.*set train: true"),
    ({"vision": FROZEN}, "training.vision: unknown key"),
    ({"projector": {"gradient_checkpointing": True}}, "projector.gradient_checkpointing: unknown key"),
    ({"gradient_checkpointing": True}, "training.gradient_checkpointing: unknown key"),
    ({"lora": {"targets": {"language_model": ["qkv"]}}}, r"lora\.targets\.language_model: 'qkv' matches no.*q_proj"),
    ({"lora": {"targets": {"vision_tower": ["up_proj"]}}}, r"lora\.targets\.vision_tower: 'up_proj' matches no.*fc1"),
    ({"lora": {"targets": {"vision_tower": ["fc1"]}}, "vision_tower": FROZEN}, "vision_tower.train=true"),
    ({"lora": {"modules_to_save": ["nothing"]}}, "modules_to_save: 'nothing' matches no module"),
    ({"lora": {"export_adapter": True}}, "export_adapter: projector and vision_tower"),
    ({"lora": {"base_bits": 4}}, "base_bits=4 needs a GPU: set gpus_per_worker=1"),
    (
        {"lora": {"base_bits": 4}, "gpus_per_worker": 1, "zero_stage": 3},
        "base_bits=4 cannot be sharded: set zero_stage",
    ),
    ({"gpus_per_worker": 4}, "set workers=8 and gpus_per_worker=1"),
    ({"zero_stage": 3}, r"zero_stage: 3 would shard nothing.*100,000.*stage3_param_persistence_threshold: 0"),
    ({"deepspeed": {"bf16": {"enabled": True}}}, "deepspeed.bf16: set precision instead"),
    ({"compile": True, "zero_stage": 3}, "compile=true does not go with zero_stage=3"),
    ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "set zero_stage instead"),
    (
        {"zero_stage": 3, "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": "few"}}},
        r"training\.deepspeed\.zero_optimization\.stage3_param_persistence_threshold",
    ),
]


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started() -> None:
        raise RuntimeError("Ray was started")

    monkeypatch.setattr(trainer, "ray_session", started)


@pytest.mark.parametrize(
    ("settings", "words"), REFUSED, ids=lambda value: "" if isinstance(value, dict) else value[:30]
)
def test_refused_before_ray_starts(
    settings: dict[str, Any], words: str, tiny_vlm: Path, tmp_path: Path, no_ray: None
) -> None:
    run = finished_synthesis(tmp_path, synthesized_rows(5))
    with pytest.raises(AdamLLMError, match=words) as refusal:
        trainer.train(training_config(tmp_path, tiny_vlm, **settings), run)
    assert refusal.value.exit_code == 2
    assert not (tmp_path / "train").exists()  # the folder is not claimed for settings that cannot work


def test_checkpoints_of_another_run_are_refused_before_ray_starts(tiny_vlm: Path, tmp_path: Path, no_ray: None) -> None:
    """Started under other settings and killed: no manifest yet, but a fingerprint."""
    run = finished_synthesis(tmp_path, synthesized_rows(5))
    config = training_config(tmp_path, tiny_vlm)
    synthesized = run.stage("synthesize").manifest()
    assert synthesized is not None
    run.stage("train").begin(trainer.fingerprint(config, synthesized, str(tiny_vlm)))
    (tmp_path / "train" / "ray").mkdir()
    for other in ({"learning_rate": 1.0}, {"lora": {}}, {"vision_tower": {"train": False}}):
        with pytest.raises(FingerprintMismatch, match=next(iter(other))):
            trainer.train(training_config(tmp_path, tiny_vlm, **other), RunFolder(str(tmp_path)))
    for same in ({}, {"vision_tower": {"gradient_checkpointing": True}}):  # the same model, so it goes on
        with pytest.raises(RuntimeError, match="Ray was started"):
            trainer.train(training_config(tmp_path, tiny_vlm, **same), RunFolder(str(tmp_path)))


def test_model_without_checkpointed_layers(tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(outline(str(tiny_vlm))), "supports_gradient_checkpointing", False)
    section = TrainingSection.model_validate({"vision_tower": {"gradient_checkpointing": True}})
    with pytest.raises(ConfigError, match=r"training\.vision_tower\.gradient_checkpointing: .* leave it off"):
        check_training(section, str(tiny_vlm))


def test_four_bits_without_bitsandbytes(tiny_vlm: Path) -> None:
    section = TrainingSection.model_validate({"gpus_per_worker": 1, "lora": {"base_bits": 4}})
    with pytest.raises(ConfigError, match="install bitsandbytes"):
        check_training(section, str(tiny_vlm))


@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": {"targets": {"vision_tower": ["fc1"]}, "modules_to_save": ["linear_2"]}}, {"projector": FROZEN}],
    ids=["full", "lora", "frozen"],
)
def test_table_without_weights_is_the_workers(settings: dict[str, Any], tiny_vlm: Path) -> None:
    section = TrainingSection.model_validate({"vision_tower": {"learning_rate": 1e-6}} | settings)
    drawn = check_training(section, str(tiny_vlm))
    real = prepare_parts(load_vlm(tiny_vlm, "float32")[0], section).rows
    assert [asdict(row) for row in drawn] == [asdict(row) for row in real]
    assert parts_table(drawn).count("\n") == 3


def test_sharding_of_small_models_can_be_asked_for(tiny_vlm: Path) -> None:
    assert check_training(TrainingSection.model_validate({"zero_stage": 3, "deepspeed": PERSISTENCE}), str(tiny_vlm))


def test_a_whole_run_is_refused_before_its_first_stage(tiny_vlm: Path, tmp_path: Path) -> None:
    from adamllm_ray.stages import run_stages

    tree = {"run": {"output": str(tmp_path / "run")}, "models": {"base": str(tiny_vlm)}, "training": {"zero_stage": 3}}
    config = parse_config(tree)
    with pytest.raises(ConfigError, match="shard nothing"):
        list(run_stages(config, RunFolder(str(tmp_path / "run"))))
    assert not (tmp_path / "run").exists()
