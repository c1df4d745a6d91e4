"""Every configuration of a paper setting loads, says what the paper says, and can be built up to its first batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import RunConfig, load_config, parse_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.pocket.rehearsal import architecture_of, rehearse

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
PAPER = sorted((CONFIGS / "paper").glob("*.yaml"))
# paper.md section 5: learning rates of the language model and tower, warm-up, weight decay, ZeRO stage, micro-batch
TABLE_10 = {
    "llava_next": (2e-5, 2e-6, 0.03, 0.0, 3, 4),
    "qwen2_vl": (1e-5, None, 0.1, 0.1, 2, 8),
    "mllama": (5e-6, None, 0.1, 0.1, 3, 4),
}
PARTS = {"language_model", "projector", "vision_tower"}


def test_there_is_one_for_every_setting() -> None:
    domains = ("biomed_pmc_raw", "biomed_pmc_refined", "food", "remote_sensing")
    models = ("llava_next_8b", "qwen2_vl_2b", "llama_3_2_11b")
    wanted = {f"{domain}_{model}" for domain in domains for model in models} | {"synthesizer_llava_next_8b"}
    assert {path.stem for path in PAPER} == wanted


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_settings_can_be_built(path: Path) -> None:
    config = load_config(path)
    section, kind = config.training, architecture_of(config.models.base)
    rates = section.learning_rate, section.vision_tower.learning_rate
    found = (*rates, section.warmup_share, section.weight_decay, section.zero_stage, section.micro_batch)
    assert found == TABLE_10[kind]
    assert (section.global_batch, section.max_length, section.schedule) == (128, 6144, "cosine")
    assert section.epochs == (2 if section.objective == "synthesizer" else 1)
    (made,) = rehearse(config)
    assert made.architecture == kind
    assert {part for part, count in made.trainable.items() if count} == PARTS
    assert made.labels > 20
    assert made.loss is not None
    head = path.read_text("utf-8").split("\nrun:")[0]
    assert f"adamllm run jobs/configs/paper/{path.name} --dry-run" in head
    assert "Data:" in head


@pytest.mark.parametrize("name", ["quickstart", "own_data"])
def test_small_configurations_too(name: str) -> None:
    assert [made.name for made in rehearse(load_config(CONFIGS / f"{name}.yaml"))] == ["train"]


def tree(**sections: Any) -> RunConfig:
    return parse_config({"run": {"output": "nowhere"}} | sections)


def test_every_recipe_is_gone_through() -> None:
    training = {"global_batch": 8, "micro_batch": 2, "recipe": "two_stage", "lora": {"rank": 2}}
    seed = {"captions": "c.json", "precise": "p.json", "informative": "i.json"}
    replay = {"replay": [{"name": "general", "path": "/not/here.json", "weight": 0.5}]}
    config = tree(training=training, seed=seed, mixture=replay, models={"synthesizer": "tuned"})
    tuned, captions, tasks = rehearse(config)
    assert [made.name for made in (tuned, captions, tasks)] == ["synthesizer", "train_captions", "train"]
    assert {part for part, count in captions.trainable.items() if count} == {"projector"}
    packed = {"token_budget": 512, "max_length": 512, "packing": True, "global_batch": 8}
    (made,) = rehearse(tree(training=packed))
    assert made.loss is None
    assert not Path("nowhere").exists()


def test_a_name_that_tells_nothing_needs_a_kind() -> None:
    config = tree(models={"base": "s3://bucket/models/ours"})
    with pytest.raises(ConfigError, match="--like, one of llava_next, qwen2_vl"):
        rehearse(config)
    assert rehearse(config, "qwen2_vl")[0].architecture == "qwen2_vl"
