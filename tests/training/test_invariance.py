"""A record's draws are its own: other shards, more workers and failing neighbours change nothing about it."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adamllm_ray.config import RunConfig, parse_config
from adamllm_ray.data.record import record_id
from adamllm_ray.models.checkpoint import load_processor
from adamllm_ray.synthesis.attempts import sampling
from adamllm_ray.synthesis.requests import SamplingSpec
from adamllm_ray.training.catalog import build_catalog, write_catalog
from adamllm_ray.training.lengths import Lengths
from adamllm_ray.training.stream import open_batches
from tests.training.conftest import finished_synthesis, synthesized_rows

ROWS = synthesized_rows(15)
Examples = dict[str, list[tuple[int, ...]]]


def config_of(output: Path, base: Path, world: int) -> RunConfig:
    mixture = {"both": 0.4, "caption": 0.3, "task": 0.3, "untasked": 0.7, "tolerance": 1.0}
    training = {"epochs": 2, "global_batch": 6, "micro_batch": 1, "workers": world, "max_length": 400}
    tree = {"run": {"output": str(output), "seed": 11}, "models": {"base": str(base)}, "mixture": mixture}
    wording = {"reversed_share": 0.4, "caption_request": "pool"}
    return parse_config(tree | {"training": training, "conversations": wording})


def examples(rows: list[dict[str, Any]], base: Path, world: int) -> tuple[Examples, list[str]]:
    """The token ids of every example by record, and the order of all of them."""
    with tempfile.TemporaryDirectory() as folder:
        run, config = finished_synthesis(folder, rows), config_of(Path(folder), base, world)
        stage = run.stage("train")
        stage.begin({})
        measure = Lengths(load_processor(str(base)), config.data.images, config.conversations, seed=config.run.seed)
        write_catalog(build_catalog(run.stage("synthesize"), {}, measure), stage)
        found: Examples = defaultdict(list)
        for rank in range(world):
            source = open_batches(config.model_dump_json(), run.uri, str(base), rank, world)
            for step in range(source.steps):
                for batch in source.load(step):
                    tokens = batch.inputs["input_ids"].tolist()
                    for key, ids in zip(batch.ids, tokens, strict=False):
                        found[key].append(tuple(ids))
        order = [source.mixture.items.id(entry.item) for entry in source.entries]
        return dict(found), order


def failing(number: int) -> dict[str, Any]:
    """A row that has failed already, or will when its turn comes."""
    row = dict(ROWS[0]) | {"id": record_id(None, f"bad {number}", ""), "key": f"bad {number}"}
    if number % 2:
        row |= {"verdict": "ok", "image": ROWS[1]["image"], "caption": "", "task_verdict": "response_empty"}
    return row


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(ROWS))), bad=st.integers(0, 6), world=st.sampled_from([1, 2, 3]))
def test_no_draw_depends_on_neighbours(tiny_vlm: Path, order: list[int], bad: int, world: int) -> None:
    before, first = examples(ROWS, tiny_vlm, 1)
    rows = [ROWS[index] for index in order]
    for number in range(bad):
        rows.insert(number * 2, failing(number))
    after, second = examples(rows, tiny_vlm, world)
    known = {row["id"] for row in ROWS}
    assert {key: ids for key, ids in after.items() if key.split("/")[0] in known} == before
    assert [id for id in second if id in known] == first  # and the same order of training


@given(id=st.text(min_size=1), number=st.integers(0, 5))
def test_a_sampler_is_seeded_by_the_record(id: str, number: int) -> None:
    base = SamplingSpec(max_tokens=5)
    assert sampling(base, 0.7, 3, id, number) == sampling(base, 0.7, 3, id, number)
    assert sampling(base, 0.7, 3, id, number).seed != sampling(base, 0.7, 4, id, number).seed
