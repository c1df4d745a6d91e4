"""A published data set: what is in it, that `datasets` loads it, and that TRL trains a step on it."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import yaml

from adamllm_ray.config import parse_config
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError
from adamllm_ray.publish import dataset as module
from adamllm_ray.publish.dataset import dataset_name, publish
from tests.quality.conftest import finish, picture, task

pytestmark = pytest.mark.timeout(300)
HOSTILE = "Ignore this <image> and | that.\n## Heading <video>"


@pytest.fixture
def config(tmp_path):
    sources = [{"name": "Our | own scans", "licence": "cc-by-4.0", "url": "https://example.org/scans"}]
    return parse_config(
        {
            "run": {"name": "waves", "output": str(tmp_path / "run")},
            "data": {"path": "/secret/pairs.json"},
            "models": {"synthesizer": "/secret/model", "judge": "pocket:judge"},
            "publish": {"title": "Waves of colour", "license": "cc-by-4.0", "sources": sources},
        }
    )


@pytest.fixture
def run(config):
    run = RunFolder.of(config.run)
    rows = [task(i) for i in range(20)]
    rows[3] |= {"caption": HOSTILE, "instruction": HOSTILE}
    rows[4] |= {"caption_instruction": "Say <image> what you see."}
    rows += [task(20 + i, task_verdict="judged_inconsistent", judge_yes=0.1) for i in range(4)]
    rows += [task(24, task_verdict="not_synthesized", verdict="image_missing", image=None)]
    verdicts = {"kept": 20, "judged_inconsistent": 4, "not_synthesized": 1}
    finish(run, "ingest", rows, {"ok": 24, "image_missing": 1})
    finish(run, "synthesize", rows, verdicts)
    return run


def test_datasets_loads_it(config, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache", raising=False)
    from datasets import load_dataset

    done = publish(config, run, str(tmp_path / "out"))
    assert (done.rows, done.left_out) == (20, {})
    data = load_dataset(str(tmp_path / "out"), split="train")
    assert data.num_rows == 20
    row = data[0]
    assert row["images"][0].size == (96, 96)
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user", "assistant"]
    said = " ".join(message["content"] for message in row["messages"])
    for text in (row["caption"], row["instruction"], row["informative"]):
        assert text in said
    assert row["judge_yes"] == pytest.approx(0.915)
    original = next(picture(i) for i in range(20) if f"{i:032x}" == row["id"])
    raw = data.cast_column("images", type(data.features["images"])(type(data.features["images"].feature)(decode=False)))
    assert raw[0]["images"][0]["bytes"] == original  # encoded as it came


def test_placeholders_are_where_each_trainer_wants_them(config, run, tmp_path):
    publish(config, run, str(tmp_path / "out"))
    rows = pq.read_table(tmp_path / "out" / "data" / "train-00000.parquet").to_pylist()
    for row in rows:
        assert "<image>" not in "".join(message["content"] for message in row["messages"])
        values = [turn["value"] for turn in row["sharegpt"]]
        assert values[0].startswith("<image>\n")
        assert "".join(values).count("<image>") == len(row["images"]) == 1
        assert [turn["from"] for turn in row["sharegpt"]] == ["human", "gpt", "human", "gpt"]
        assert "<video>" not in "".join(values)
    (hostile,) = (row for row in rows if row["id"] == f"{3:032x}")
    assert hostile["caption"] == "Ignore this < image > and | that.\n## Heading < video >"
    described = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert described == {
        "Waves-of-colour": {
            "file_name": "data",
            "formatting": "sharegpt",
            "columns": {"messages": "sharegpt", "images": "images"},
        }
    }


def test_the_card_says_what_is_known_and_nothing_private(config, run, tmp_path):
    from huggingface_hub import DatasetCard

    publish(config, run, str(tmp_path / "out"))
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.pretty_name == "Waves of colour"
    assert card.data.size_categories == "n<1K"
    text = card.text
    for words in (
        "| Our \\| own scans | cc-by-4.0 |",
        "| synthesizer | a private folder |",
        "| synthesize | judged inconsistent | 4 | 16.0 % |",
        "Keep rate: 83.3 %",
        "| how many | 19 |",
        "P(Yes) is at least 0.5",
    ):
        assert words in text
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for private in (b"/secret", b"secret-", str(tmp_path).encode()):
        assert private not in everything
    assert yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])["configs"]


def test_an_unknown_licence_is_shown_as_such(config, run, tmp_path):
    settings = config.model_dump(mode="json") | {"publish": {}}
    publish(parse_config(settings), run, str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: other" in text
    assert "Not stated by the owner" in text


def test_contaminated_records_are_left_out_and_counted(config, run, tmp_path):
    import pyarrow as pa

    asked = [{"image": picture(5), "question": "Is it five?", "answer": "yes"}]
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "test.parquet")
    settings = config.model_dump(mode="json")
    settings["contamination"] = {
        "against": [{"name": "test", "path": str(tmp_path / "test.parquet")}],
        "near_images": None,
        "exclude": ["image"],
    }
    done = publish(parse_config(settings), run, str(tmp_path / "out"))
    assert (done.rows, done.left_out) == (19, {"contaminated": 1})
    assert "left out here: 1 contaminated" in (tmp_path / "out" / "README.md").read_text()


def test_shards_and_a_second_time(config, run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 3)
    done = publish(config, run, str(tmp_path / "out"))
    shards = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert len(shards) > 2
    assert sum(pq.read_metadata(tmp_path / "out" / "data" / name).num_rows for name in shards) == 20
    assert sorted(done.files) == sorted([*(f"data/{name}" for name in shards), "README.md", "dataset_info.json"])
    assert done.bytes == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match="not empty"):
        publish(config, run, str(tmp_path / "out"))


def test_nothing_to_publish(config, tmp_path):
    empty = RunFolder(str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="no finished synthesis"):
        publish(config, empty, str(tmp_path / "out"))
    finish(empty, "synthesize", [task(0, task_verdict="judged_open")], {"judged_open": 1})
    with pytest.raises(ConfigError, match="no kept task"):
        publish(config, empty, str(tmp_path / "out"))


def test_names():
    assert dataset_name("Waves: of  colour/2") == "Waves-of-colour-2"
    assert dataset_name("??") == "dataset"


@pytest.mark.slow
def test_trl_trains_a_step_on_it(config, run, tmp_path, tiny_vlm, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    from datasets import load_dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    publish(config, run, str(tmp_path / "out"))
    data = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    settings = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=1,
        per_device_train_batch_size=2,
        max_length=None,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        learning_rate=1e-3,
        dataloader_pin_memory=False,
    )
    model = AutoModelForImageTextToText.from_pretrained(tiny_vlm)
    processor = AutoProcessor.from_pretrained(tiny_vlm)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = SFTTrainer(
        model, settings, train_dataset=data.select_columns(["messages", "images"]), processing_class=processor
    )
    outcome = trainer.train()
    assert outcome.global_step == 1
    assert outcome.training_loss > 0
    assert any(not value.equal(before[name]) for name, value in model.named_parameters())
    batch = next(iter(trainer.get_train_dataloader()))
    image = model.config.image_token_id
    assert (batch["input_ids"] == image).any(dim=1).all()  # every example has its image in it
