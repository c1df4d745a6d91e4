"""The stage: a row per image and refused record, the report, the ceiling, and draws that no neighbour changes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data.images import decode
from adamllm_ray.data.manifest import Manifest
from adamllm_ray.data.run import RunFolder
from adamllm_ray.errors import ConfigError, FingerprintMismatch, SourceError, TooManyFailures
from adamllm_ray.pocket.seeds import write_seed
from adamllm_ray.training.seed.build import seed
from tests.buckets import local_bucket
from tests.training.seed.files import Records, pictures, records, talk, write


def config_of(folder: Path, made: Records, output: str = "run", **section: Any) -> RunConfig:
    tree = write(folder, made, **section).model_dump(mode="json")
    return parse_config({"run": {"output": str(folder / output), "seed": 5}, "seed": tree})


def built(config: RunConfig) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    run = RunFolder.of(config.run)
    manifest = seed(config, run)
    rows = [row for file in run.stage("seed").parquet_files() for row in pq.read_table(file).to_pylist()]
    return manifest, {f"{row['source']}:{row['key']}": row for row in rows}


def draws(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["id"], row["turns"], row["blank"], row["split"]


def test_one_row_per_image_and_per_refused_record(tmp_path: Path) -> None:
    pictures(tmp_path, 40)
    made = records(42)  # two without a picture
    made["precise"] = made["precise"][1:]
    made["informative"][1]["conversations"] = talk("Another?", "one")
    made["informative"].append({"image": "nowhere.png", "conversations": talk("q", "a")})
    made["captions"].append({"image": "5.png", "caption": "again"})
    manifest, rows = built(config_of(tmp_path, made, max_failed_share=0.1))
    assert manifest.rows_in == len(rows) == 44
    assert manifest.verdicts == {
        "ok": 38,
        "image_missing": 2,
        "seed_no_precise": 1,
        "seed_unpaired": 1,
        "seed_no_caption": 1,
        "duplicate": 1,
    }
    extra = manifest.extra
    assert extra["records"]["informative"] == {"read": 43, "refused": {"seed_no_caption": 1}}
    assert extra["splits"]["train"] + extra["splits"]["dev"] == 38
    assert extra["questions"] == 2 * 38
    assert rows["captions:0.png"]["verdict"] == "seed_no_precise"
    assert "already" in rows["captions:43"]["verdict_detail"]
    row = rows["captions:7.png"]
    assert json.loads(row["turns"])[:2] == [["user", "Describe the image."], ["assistant", "caption 7"]]
    assert (row["width"], row["height"], row["questions"]) == (60, 60, 2)


def test_blank_images_are_white_and_as_large_as_what_they_replace(tmp_path: Path) -> None:
    pictures(tmp_path, 12)
    config = config_of(tmp_path, records(12), blank_share=0.5)
    _, rows = built(config)
    blank = [row for row in rows.values() if row["blank"]]
    assert 1 < len(blank) < 11
    for row in rows.values():
        picture = decode(row["image"], config.data.images)
        assert picture.size == (60, 60)
        assert (picture.getextrema() == ((255, 255),) * 3) == row["blank"]


def test_moved_records_other_shards_and_failing_neighbours_change_no_draw(tmp_path: Path) -> None:
    pictures(tmp_path, 40)
    share = {"blank_share": 0.3, "dev_share": 0.3, "max_failed_share": 1.0}
    _, before = built(config_of(tmp_path, records(40), "before", **share))
    made = records(40)
    for listed in made.values():
        Random(1).shuffle(listed)
        listed[3:3] = [None, {"image": "missing.png", "caption": "c", "conversations": talk("q", "a")}, {}]
    config = config_of(tmp_path, made, "after", **share)
    after = built(config.model_copy(update={"data": config.data.model_copy(update={"rows_per_shard": 7})}))[1]
    assert len({row["split"] for row in before.values()}) == 2
    for key, row in before.items():
        assert draws(after[key]) == draws(row)


def test_too_many_bad_records_stop_with_their_reasons_and_the_rows_stay(tmp_path: Path) -> None:
    pictures(tmp_path, 4)
    made = records(4)
    made["precise"] += [{"image": "1.png", "conversations": talk("q")}, {"picture": "1.png"}]
    config = config_of(tmp_path, made)
    with pytest.raises(TooManyFailures) as stopped:
        seed(config, RunFolder.of(config.run))
    message = str(stopped.value)
    assert "2 of 6 rows failed (33.3%; seed.max_failed_share is 5.0%)" in message
    assert "1 x seed_unanswered, e.g. record 5 of seed.precise: 1.png: the conversation has a question" in message
    assert "1 x row_unreadable, e.g. record 6 of seed.precise: no image" in message
    raised = config.seed.model_copy(update={"max_failed_share": 0.5})
    manifest, _ = built(config.model_copy(update={"seed": raised}))
    assert (manifest.kept, manifest.failed) == (4, 2)


def test_nothing_to_train_on_and_no_files_are_said(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    made = records(2)
    made["informative"] = []
    config = config_of(tmp_path, made)
    with pytest.raises(SourceError, match="seed_no_informative"):
        seed(config, RunFolder.of(config.run))
    empty = parse_config({"run": {"output": str(tmp_path / "other")}})
    with pytest.raises(ConfigError, match="three seed files"):
        seed(empty, RunFolder.of(empty.run))


def test_official_rows(tmp_path: Path) -> None:
    pictures(tmp_path, 40)
    manifest, rows = built(config_of(tmp_path, records(40), compat="official"))
    group = [f"{number}.png" for number in range(40)]
    Random(42).shuffle(group)
    blank = [rows[f"captions:{group[place]}"] for place in (31, 32)]
    assert manifest.extra["blank"] == 2
    for row in blank:
        assert (row["blank"], row["width"], row["height"]) == (True, 237, 150)
        assert row["image"][:3] == b"\xff\xd8\xff"  # JPEG
    assert manifest.extra["splits"] == {"train": 36, "dev": 4}


def test_another_file_is_another_stage(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    config = config_of(tmp_path, records(3))
    assert built(config)[0].to_json() == built(config)[0].to_json()
    made = records(3)
    made["captions"][0]["caption"] = "changed"
    with pytest.raises(FingerprintMismatch, match=r"files\.captions"):
        built(config_of(tmp_path, made))


def test_the_pocket_world_writes_seed_files(tmp_path: Path) -> None:
    section = write_seed(tmp_path, 12)
    config = parse_config({"run": {"output": str(tmp_path / "run")}, "seed": section})
    manifest, rows = built(config)
    assert (manifest.kept, manifest.rejected, manifest.failed) == (12, 0, 0)
    assert all(row["task"] for row in rows.values())


def test_seed_files_and_images_on_s3(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    section = write(tmp_path, records(3))
    with local_bucket() as bucket:
        for path in tmp_path.iterdir():
            bucket.upload_file(str(path), f"seed/{path.name}")
        there = {name: f"s3://runs/seed/{name}.json" for name in ("captions", "precise", "informative")}
        config = parse_config({"run": {"output": str(tmp_path / "run")}, "seed": there})
        manifest, _ = built(config)
    assert section.given
    assert manifest.kept == 3
