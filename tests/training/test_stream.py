"""From Parquet files to batches: every worker reads its own rows, each example once an epoch, refusals are noted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adamllm_ray.config import ImageLimits, RunConfig
from adamllm_ray.data.run import RunFolder
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ConfigError, SourceError
from adamllm_ray.models.checkpoint import load_processor
from adamllm_ray.training.books import Books, forbidden_sets, take_stock
from adamllm_ray.training.catalog import RowReader, build_catalog, read_catalog, write_catalog
from adamllm_ray.training.collate import Batch, Collator
from adamllm_ray.training.lengths import Lengths
from adamllm_ray.training.mix import Mixture
from adamllm_ray.training.replay import copy_replay
from adamllm_ray.training.stream import RowBatches, plan, refusal_key
from adamllm_ray.training.trainer import fingerprint
from tests.training.conftest import ROWS, finished_synthesis, picture, synthesized_rows, training_config


def streams(run: RunFolder, config: RunConfig, base: Path, world: int) -> list[RowBatches]:
    stage = run.stage("train")
    stage.begin({})
    replay = copy_replay(config.mixture.replay, ImageLimits(), stage)
    processor = load_processor(str(base))
    write_catalog(build_catalog(run.stage("synthesize"), replay.files, Lengths(processor, ImageLimits())), stage)
    catalog = read_catalog(stage)
    mixture = Mixture(catalog.items(), config.mixture, config.run.seed)
    entries = plan(mixture, config.training)
    collators = [Collator(processor, config.training.max_length) for _ in range(world)]
    return [
        RowBatches(
            entries, mixture, RowReader(catalog, stage.fs), collators[rank], config.training, rank=rank, world=world
        )
        for rank in range(world)
    ]


def batches(sources: list[RowBatches]) -> list[Batch]:
    return [batch for source in sources for step in range(source.steps) for batch in source.load(step)]


def seen(sources: list[RowBatches]) -> Counter[str]:
    return Counter(id for batch in batches(sources) for id in batch.ids)


def test_each_example_once_however_many_workers(tmp_path: Path, tiny_vlm: Path) -> None:
    config = training_config(tmp_path / "a", tiny_vlm, epochs=2)
    one = seen(streams(finished_synthesis(tmp_path / "a", synthesized_rows()), config, tiny_vlm, 1))
    # other files and row groups, other number of workers: the same examples
    two = seen(streams(finished_synthesis(tmp_path / "b", synthesized_rows()[::-1]), config, tiny_vlm, 2))
    assert one == two
    assert set(one.values()) == {1}
    assert len(one) == 2 * (ROWS - 2)


def test_long_example_is_noted_by_the_worker_that_met_it(tmp_path: Path, tiny_vlm: Path) -> None:
    rows = synthesized_rows()
    rows[1]["caption"] = "a red circle " * 200
    sources = streams(finished_synthesis(tmp_path, rows), training_config(tmp_path, tiny_vlm, epochs=1), tiny_vlm, 2)
    made = batches(sources)
    ids = [id for batch in made for id in batch.ids]
    refused = {key: verdict for batch in made for key, verdict in batch.refused.items()}
    entry = next(e for e in sources[0].entries if sources[0].mixture.items.id(e.item) == rows[1]["id"])
    assert refused == {refusal_key(entry, rows[1]["id"]): Verdict.EXAMPLE_TOO_LONG}
    assert len(ids) == ROWS - 3


def test_replay_is_read_checked_and_mixed_in(tmp_path: Path, tiny_vlm: Path) -> None:
    (tmp_path / "p.png").write_bytes(picture(99))
    turn = {"role": "user", "content": "<image>\nwhat is shown?"}
    good = {"messages": [turn, {"role": "assistant", "content": "a circle"}], "images": ["p.png"]}
    text = {"conversations": [{"from": "human", "value": "0 1?"}, {"from": "gpt", "value": "2"}]}
    lines = [json.dumps(one) for one in (good, text, good | {"images": ["gone.png"]}, {"messages": []})] + ["{broken"]
    (tmp_path / "general.jsonl").write_text("\n".join(lines))
    source: dict[str, Any] = {"name": "general", "path": str(tmp_path / "general.jsonl"), "weight": 0.5}
    config = training_config(tmp_path / "run", tiny_vlm, epochs=1)
    config = config.model_validate(config.model_dump() | {"mixture": {"replay": [source]}})
    run = finished_synthesis(tmp_path / "run", synthesized_rows())
    sources = streams(run, config, tiny_vlm, 2)
    assert len(seen(sources)) == 22 + 11
    assert Counter(entry.form.partition(":")[0] for entry in sources[0].entries)["replay"] == 11
    verdicts = copy_replay(config.mixture.replay, ImageLimits(), run.stage("other")).verdicts["general"]
    assert verdicts == {"ok": 2, "image_missing": 1, "row_unreadable": 2}
    (tmp_path / "general.jsonl").write_text(lines[-1])
    with pytest.raises(SourceError, match="no usable record"):
        copy_replay(config.mixture.replay, ImageLimits(), run.stage("third"))


def test_contaminated_records_do_not_train_and_say_so(tmp_path: Path, tiny_vlm: Path) -> None:
    """Records whose image is in the evaluation set get a verdict; the rest trains as before."""
    rows = synthesized_rows()
    run, config = finished_synthesis(tmp_path, rows), training_config(tmp_path, tiny_vlm, epochs=1)
    run.stage("train").begin({})
    leaked = [row for row in rows if row["verdict"] == Verdict.OK][:3]
    asked = [{"image": row["image"], "question": f"Is it {n}?", "answer": "no"} for n, row in enumerate(leaked)]
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "test.parquet")
    section = {
        "against": [{"name": "test", "path": str(tmp_path / "test.parquet")}],
        "near_images": None,
        "exclude": ["image"],
    }
    config = config.model_validate(config.model_dump() | {"contamination": section})
    forbidden = forbidden_sets(config)
    books = Books(config, run.stage("train"), take_stock(config, run, run.stage("train"), str(tiny_vlm), forbidden))
    counts = books.verdicts({})
    same = {
        row["id"] for row in rows if row["verdict"] == Verdict.OK and row["image"] in [one["image"] for one in leaked]
    }
    assert counts["contaminated"] == len(same) >= 3
    assert sum(counts.values()) == ROWS
    trained = {books.mixture.items.id(entry.item) for entry in books.entries}
    assert not trained & same
    assert len(trained) == counts["ok"]
    before, after = (
        fingerprint(config, run.stage("synthesize").manifest(), str(tiny_vlm), one) for one in (None, forbidden)
    )  # type: ignore[arg-type]
    assert before == {key: value for key, value in after.items() if key != "contamination"}


def test_excluding_needs_something_to_compare_with(tmp_path: Path, tiny_vlm: Path) -> None:
    config = training_config(tmp_path, tiny_vlm, epochs=1)
    assert forbidden_sets(config) is None
    config = config.model_validate(config.model_dump() | {"contamination": {"exclude": ["image"]}})
    with pytest.raises(ConfigError, match="no evaluation set"):
        forbidden_sets(config)


def test_the_books_count_each_record_once(tmp_path: Path, tiny_vlm: Path) -> None:
    """Refused in one epoch and trained in another is trained; refused in all of them is its last verdict."""
    rows = synthesized_rows()
    run, config = finished_synthesis(tmp_path, rows), training_config(tmp_path, tiny_vlm, epochs=2)
    run.stage("train").begin({})
    books = Books(config, run.stage("train"), take_stock(config, run, run.stage("train"), str(tiny_vlm), None))
    plain = {"ok": ROWS - 2, "image_missing": 1, "duplicate": 1}
    assert books.verdicts({}) == plain
    once, always = rows[1]["id"], rows[2]["id"]
    refused = {
        f"{once}/1/0": "example_too_long",
        f"{always}/0/0": "image_truncated",
        f"{always}/1/0": "example_too_long",
    }
    assert books.verdicts(refused) == plain | {"ok": ROWS - 3, "example_too_long": 1}
    outcome = {"steps": books.steps, "losses": [], "refused": refused, "parts": [], "resumed": [], "passed_over": []}
    assert books.summary(outcome)["examples"] == 2 * (ROWS - 2) - 3
