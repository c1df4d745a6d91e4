"""Which trainings a configuration means, and a synthesizer's examples from seed data to batches. No Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError
from adamllm_ray.stages import planned
from adamllm_ray.training.books import Books, take_stock
from adamllm_ray.training.conversations import IGNORE
from adamllm_ray.training.recipes import passes, synthesizer_pass
from adamllm_ray.training.seed.build import seed
from adamllm_ray.training.stream import open_batches
from adamllm_ray.training.trainer import check
from tests.training.seed.files import pictures, records, write

SEED = {"captions": "c.json", "precise": "p.json", "informative": "i.json"}


def config_of(tmp_path: Path, **sections: Any) -> RunConfig:
    return parse_config({"run": {"output": str(tmp_path / "run")}} | sections)


def test_single_stage_is_one_training_of_the_configuration_itself(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (only,) = passes(config, RunFolder.of(config.run))
    assert (only.name, only.source, only.config) == ("train", "synthesize", config)


def test_two_stages_of_a_llava_model_begin_with_its_projector(tmp_path: Path) -> None:
    config = config_of(tmp_path, training={"recipe": "two_stage"}, mixture={"tolerance": 0.2})
    first, second = passes(config, RunFolder.of(config.run))
    assert (first.name, second.name) == ("train_captions", "train")
    section = first.config.training
    assert [section.language_model.train, section.projector.train, section.vision_tower.train] == [False, True, False]
    assert section.projector.learning_rate == 2e-3
    assert (first.config.mixture.both, first.config.mixture.caption, first.config.mixture.untasked) == (0, 1, 1)
    assert second.config.training == config.training
    assert second.config.models.base == str(tmp_path / "run/train_captions/model")
    mixture = second.config.mixture
    assert (mixture.both, mixture.task, mixture.untasked, mixture.tolerance) == (0, 1, 0, 0.2)
    parse_config(json.loads(first.config.model_dump_json()))  # as a worker reads it


def test_captions_again_and_other_families(tmp_path: Path, tiny_qwen: Path) -> None:
    two = {"recipe": "two_stage", "learning_rate": 1e-5, "two_stage": {"captions_again": True}}
    config = config_of(tmp_path, training=two, models={"base": str(tiny_qwen)}, mixture={"both": 0.6, "caption": 0.4})
    first, second = passes(config, RunFolder.of(config.run))
    assert first.config.training == config.training  # the full model
    assert second.config.mixture == config.mixture
    check(config, RunFolder.of(config.run))  # the second stage's model is not there yet


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"training": {"objective": "synthesizer"}}, "objective: synthesizer needs seed data"),
        ({"models": {"synthesizer": "tuned"}}, "synthesizer: tuned needs seed data"),
        ({"training": {"objective": "synthesizer", "recipe": "two_stage"}, "seed": SEED}, "tuned in one stage"),
        (
            {"training": {"recipe": "two_stage", "two_stage": {"projector_only": True}, "projector": {"train": False}}},
            "would train nothing",
        ),
    ],
)
def test_contradictions_are_told(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(tmp_path, **sections)


def test_the_stages_of_a_run_with_a_synthesizer_of_its_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, models={"synthesizer": "tuned"}, seed=SEED | {"base": "pocket:base"})
    assert [stage.name for stage in planned(config)] == ["ingest", "seed", "synthesizer", "synthesize", "train"]
    shipped = config_of(tmp_path, seed=SEED)
    assert [stage.name for stage in planned(shipped)] == ["ingest", "seed", "synthesize", "train"]
    assert config.models.synthesizer == str(tmp_path / "run/synthesizer/model")
    assert parse_config(json.loads(config.model_dump_json())) == config
    made = synthesizer_pass(config)
    assert (made.name, made.source, made.config.training.objective) == ("synthesizer", "seed", "synthesizer")
    alone = config_of(tmp_path, training={"objective": "synthesizer"}, seed=SEED)
    assert [stage.name for stage in planned(alone)] == ["seed", "train"]


def test_seed_data_become_batches_with_every_row_accounted_for(tmp_path: Path, tiny_vlm: Path) -> None:
    pictures(tmp_path, 30)
    made = records(30)
    made["captions"][3]["caption"] = "a red circle " * 300
    made["captions"].append({"image": "0.png", "caption": "again"})
    section = write(tmp_path, made, dev_share=0.2).model_dump(mode="json")
    training = {"objective": "synthesizer", "global_batch": 4, "micro_batch": 2, "max_length": 400}
    config = config_of(tmp_path, seed=section, training=training, models={"base": str(tiny_vlm)})
    run = RunFolder.of(config.run)
    manifest = seed(config, run)
    (only,) = passes(config, run)
    stage = run.stage(only.name)
    stage.begin({})
    books = Books(only.config, stage, take_stock(only.config, run, stage, str(tiny_vlm), None, only.source))
    source = open_batches(only.config.model_dump_json(), run.uri, str(tiny_vlm), 0, 1, "train")
    batches = [batch for step in range(source.steps) for batch in source.load(step)]
    refused = {key: verdict.value for batch in batches for key, verdict in batch.refused.items()}
    verdicts = books.verdicts(refused)
    assert sum(verdicts.values()) == manifest.rows_in == 31
    assert (verdicts["duplicate"], verdicts["example_too_long"]) == (1, 1)
    assert verdicts["held_out"] == manifest.extra["splits"]["dev"] > 0
    ids = [id for batch in batches for id in batch.ids]
    assert len(ids) == len(set(ids)) == verdicts["ok"]
    chat = source.chat
    for batch in batches:
        labels, tokens = batch.inputs["labels"], batch.inputs["input_ids"]
        for row, known in zip(labels, tokens, strict=True):
            learnt = (row != IGNORE).nonzero().flatten()
            first = int(learnt[0])
            assert learnt.tolist() == list(range(first, int(learnt[-1]) + 1))  # one stretch, to the end
            assert int(row[learnt[-1]]) == chat.eos_id
            asked = chat.decode(known[first : int(learnt[-1])].tolist())
            assert asked.count("Answer with a precise response.") == 1
            assert asked.count("Answer with an informative response.") == 1
        assert {kind for _, _, _, kind in batch.kinds} == ({"question", "answer"} if batch.ids else set())
    lengths = {len(row) for row in books.mixture.items.tokens}
    assert lengths == {3}
